"""The generated rule file, by promtool itself: each fault fires its rule in time, a clean run is silent."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadwise.decision.alert_rules import RULES
from loadwise.decision.facts import Policy
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.metric import Kind
from loadwise.telemetry.names import METRICS
from loadwise.telemetry.prometheus_rules import EXPRESSIONS, rule_file

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: apt-get install prometheus"
)
BY_NAME = {rule.name: rule for rule in RULES}
HERE = 'job="loadwise", instance="a"'
# Steps of fifteen seconds; two hours of a healthy server come before each fault.
STEP_S, QUIET_STEPS = 15, 480


def steady(per_step: int, then: int | None = None) -> str:
    """A counter that grows by so much each step, and after the quiet time by `then`."""
    after = per_step if then is None else then
    return f"0+{per_step}x{QUIET_STEPS} {per_step * QUIET_STEPS + after}+{after}x400"


def level(value: float | str, then: float | None = None) -> str:
    """A gauge that stands at a value ("_" is absent), and after the quiet time at `then`."""
    after = value if then is None else then
    quiet = f"_x{QUIET_STEPS + 1}" if value == "_" else f"{value}+0x{QUIET_STEPS}"
    return f"{quiet} {after}+0x400"


HEALTHY: dict[str, str] = {
    'loadwise_requests_total{ending="succeeded",member="fast",route="auto"}': steady(15),
    'loadwise_requests_total{ending="failed",member="fast",route="auto"}': steady(0),
    'loadwise_faults_total{member="fast"}': steady(0),
    'loadwise_request_seconds_sum{member="fast"}': steady(3),
    'loadwise_request_seconds_count{member="fast"}': steady(15),
    'loadwise_within_objectives_total{member="fast",route="auto"}': steady(1500),
    'loadwise_missed_objectives_total{member="fast",route="auto"}': steady(3),
    'loadwise_improvement_ratio{bound="value"}': level(0.2),
    'loadwise_improvement_ratio{bound="high"}': level(0.3),
    "loadwise_unoptimised_within_objectives_ratio": level(0.6),
    'loadwise_member_health{member="fast",health="out"}': level(0),
    'loadwise_member_active{member="fast"}': level(1),
    'loadwise_member_silent_seconds{member="fast"}': level(0.2),
    'loadwise_load_component_ratio{component="queue",pool="local"}': level(0.1),
    'loadwise_engine_reading_age_seconds{pool="local",replica="fast/0"}': level(0.5),
    'loadwise_engine_reading_age_seconds{pool="local",replica="fast/1"}': level(0.5),
    "loadwise_decision_age_seconds": level(0.7),
    "loadwise_rollbacks_total": level(0),
    'loadwise_control_errors_total{part="observe"}': steady(1),
    "loadwise_journal_dropped_total": level(0),
}


@dataclass(frozen=True)
class Fault:
    """What changes in the series of a healthy server, and whom the alert then names."""

    series: dict[str, str]
    subject: str = ""


AGE = 'loadwise_engine_reading_age_seconds{pool="local",replica="fast/%d"}'
GROWING = f"0.5+0x{QUIET_STEPS} 1+{STEP_S}x400"
FAULTS: dict[str, Fault] = {
    "high_error_rate": Fault({'loadwise_faults_total{member="fast"}': steady(0, 3)}),
    "excessive_latency": Fault({'loadwise_request_seconds_sum{member="fast"}': steady(3, 15)}),
    "low_optimization_effectiveness": Fault({'loadwise_improvement_ratio{bound="high"}': level(0.3, 0.05)}),
    "ensemble_degradation": Fault({'loadwise_member_health{member="fast",health="out"}': level(0, 1)}),
    "compilation_failure": Fault({'loadwise_failed_builds{model="m"}': level("_", 1)}, 'model="m"'),
    "objectives_burning": Fault(
        {
            'loadwise_within_objectives_total{member="fast",route="auto"}': steady(1500, 0),
            'loadwise_missed_objectives_total{member="fast",route="auto"}': steady(3, 1500),
        },
        'route="auto"',
    ),
    "objectives_spent": Fault(
        {'loadwise_missed_objectives_total{member="fast",route="auto"}': steady(3, 60)}, 'route="auto"'
    ),
    "queue_saturation": Fault(
        {'loadwise_load_component_ratio{component="queue",pool="local"}': level(0.1, 1)}, 'pool="local"'
    ),
    "stale_engine_metrics": Fault({AGE % 0: GROWING}, 'replica="fast/0"'),
    "sensors_stale": Fault({AGE % 0: GROWING, AGE % 1: GROWING}, 'pool="local"'),
    "loop_stale": Fault({"loadwise_decision_age_seconds": GROWING}),
    "silent_member": Fault({'loadwise_member_silent_seconds{member="fast"}': GROWING}, 'member="fast"'),
    "silent_replica": Fault(
        {'loadwise_replica_silent_seconds{member="fast",replica="fast/1"}': GROWING}, 'replica="fast/1"'
    ),
    "silent_member_serving": Fault(
        {'loadwise_member_silent_seconds{member="fast"}': GROWING}, 'member="fast"'
    ),
    "configuration_rolled_back": Fault({"loadwise_rollbacks_total": level(0, 1)}),
    "rollout_taken_back": Fault(
        {'loadwise_rollouts_taken_back{rollout="auto"}': level("_", 1)}, 'rollout="auto"'
    ),
    "optimizer_fault": Fault(
        {'loadwise_control_errors_total{part="decision"}': steady(0, 1)}, 'part="decision"'
    ),
    "journal_losing": Fault({"loadwise_journal_dropped_total": steady(0, 5)}),
    "monitoring_failed": Fault({"loadwise_monitoring_age_seconds": level("_", 5)}),
}


def at_instance(series: str) -> str:
    name, brace, labels = series.partition("{")
    return f"{name}{{{HERE}{', ' + labels if brace else '}'}"


def promql_test(series: dict[str, str], checks: list[tuple[int, str, bool]]) -> dict[str, Any]:
    """Series of fifteen seconds, and at seconds after the quiet time whether an expression has a result."""
    return {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": at_instance(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count({expression})",
                "eval_time": f"{QUIET_STEPS * STEP_S + seconds}s",
                "exp_samples": [{"labels": "{}", "value": 1}] if holds else [],
            }
            for seconds, expression, holds in checks
        ],
    }


def firing(name: str, subject: str = "") -> str:
    labels = f", {subject}" if subject else ""
    return f'group(ALERTS{{alertname="loadwise_{name}", alertstate="firing"{labels}}})'


def run(
    tmp_path: Path, tests: list[dict[str, Any]], config: OptimizationConfig | None = None, only: str = ""
) -> None:
    """promtool agrees; with `only` that rule alone is evaluated, which is a tenth of the work."""
    assert PROMTOOL is not None
    rules = rule_file((config or OptimizationConfig()).policy())
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if only in ("", rule["alert"])]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "5s", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(whole))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_every_rule_has_an_expression_and_a_fault_that_proves_it() -> None:
    assert list(EXPRESSIONS) == [rule.name for rule in RULES]
    assert set(FAULTS) == set(EXPRESSIONS)


def test_expressions_name_only_metrics_of_the_table() -> None:
    known = {metric.name for metric in METRICS}
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            known |= {f"{metric.name}_{part}" for part in ("sum", "count", "bucket")}
    for rule in rule_file(Policy())["groups"][0]["rules"]:
        assert set(re.findall(r"loadwise_\w+", rule["expr"])) <= known


@needs_promtool
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_fires_its_rule_within_the_stated_time(tmp_path: Path, name: str) -> None:
    fault, rule = FAULTS[name], BY_NAME[name]
    within_s = min(int(rule.within_s), 5400)
    checks = [(0, firing(name), False), (within_s, firing(name, fault.subject), True)]
    run(tmp_path, [promql_test({**HEALTHY, **fault.series}, checks)], only=f"loadwise_{name}")


@needs_promtool
def test_a_clean_run_is_silent(tmp_path: Path) -> None:
    anything = 'group(ALERTS{alertstate="firing"})'
    run(tmp_path, [promql_test(HEALTHY, [(s, anything, False) for s in (-3600, 0, 1800, 5400)])])


@needs_promtool
def test_a_member_that_was_taken_out_is_no_page(tmp_path: Path) -> None:
    fault = {
        'loadwise_member_silent_seconds{member="fast"}': GROWING,
        'loadwise_member_active{member="fast"}': level(1, 0),
    }
    checks = [(120, firing("silent_member_serving"), False), (120, firing("silent_member"), True)]
    run(tmp_path, [promql_test({**HEALTHY, **fault}, checks)])


@needs_promtool
def test_an_operators_threshold_is_in_the_file(tmp_path: Path) -> None:
    fault = {**HEALTHY, **FAULTS["high_error_rate"].series}
    checks = [(120, firing("high_error_rate"), False)]
    run(tmp_path, [promql_test(fault, checks)], OptimizationConfig(alert_error_rate=0.5))


@needs_promtool
def test_an_alert_tells_the_figure_of_the_moment_and_whom_it_concerns(tmp_path: Path) -> None:
    series = {**HEALTHY, **FAULTS["queue_saturation"].series}
    test = promql_test(series, [])
    rule = next(
        r for r in rule_file(Policy())["groups"][0]["rules"] if r["alert"] == "loadwise_queue_saturation"
    )
    words = {"{{ $value | humanizePercentage }}": "100%", "{{ $labels.pool }}": "local"}
    told = dict(rule["annotations"])
    for name, text in told.items():
        for template, shown in words.items():
            text = text.replace(template, shown)
        told[name] = text
    labels = {"severity": "ticket", "service": "loadwise", "job": "loadwise", "instance": "a"}
    alert = {"exp_labels": {**labels, "component": "queue", "pool": "local"}, "exp_annotations": told}
    test["alert_rule_test"] = [
        {"eval_time": f"{QUIET_STEPS * STEP_S + 120}s", "alertname": rule["alert"], "exp_alerts": [alert]}
    ]
    run(tmp_path, [test])


def test_the_guide_names_every_alert_with_its_severity() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text()
    for rule in RULES:
        assert f"| `{rule.name}` | {rule.severity.value} |" in guide
