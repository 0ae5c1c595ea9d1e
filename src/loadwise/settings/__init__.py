"""What an operator may set: the only reader of files and environment.

Precedence: command line over environment (`LOADWISE_`, `__` for nesting) over file over default.
Unknown keys are refused; every refusal names the field, its value and the range.
"""

from loadwise.settings.checked import Checked, describe
from loadwise.settings.optimization import (
    PRESETS,
    LoadWeightSettings,
    ObjectiveSettings,
    OptimizationConfig,
    RangeSettings,
)
from loadwise.settings.server import (
    AlertSettings,
    EngineMemberSettings,
    JournalSettings,
    KeySettings,
    ModelSettings,
    RouteSettings,
    Settings,
    TimeoutSettings,
    TracingSettings,
    UpstreamSettings,
    WebhookSettings,
    explain_setting,
    load_settings,
    read_yaml,
)
from loadwise.settings.terms import LimitSettings, PriceSettings

__all__ = [
    "PRESETS",
    "AlertSettings",
    "Checked",
    "EngineMemberSettings",
    "JournalSettings",
    "KeySettings",
    "LimitSettings",
    "LoadWeightSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizationConfig",
    "PriceSettings",
    "RangeSettings",
    "RouteSettings",
    "Settings",
    "TimeoutSettings",
    "TracingSettings",
    "UpstreamSettings",
    "WebhookSettings",
    "describe",
    "explain_setting",
    "load_settings",
    "read_yaml",
]
