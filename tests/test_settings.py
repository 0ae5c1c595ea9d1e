"""Settings: precedence, presets, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadwise.decision.facts import EnsembleStrategy
from loadwise.errors import ConfigurationError
from loadwise.settings import (
    PRESETS,
    OptimizationConfig,
    RangeSettings,
    explain_setting,
    load_settings,
    read_yaml,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("LOADWISE_")]:
        monkeypatch.delenv(name)


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "loadwise.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_documented_ones() -> None:
    config = OptimizationConfig()
    assert config.enable_torch_compile is True
    assert config.compile_mode == "default"
    assert config.enable_dynamic_tuning is True
    assert config.tuning_interval_sec == 30.0
    assert config.load_threshold_high == 0.8
    assert config.load_threshold_low == 0.3
    assert config.enable_ensemble is True
    assert config.max_ensemble_size == 3
    assert config.ensemble_strategy is EnsembleStrategy.WEIGHTED_VOTING
    assert config.enable_performance_tracking is True
    assert config.metrics_history_size == 1000


def test_command_line_wins_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml_file(tmp_path, "port: 1001\nhost: 127.0.0.2\noptimization: {max_ensemble_size: 5}\n")
    assert load_settings(path).port == 1001
    monkeypatch.setenv("LOADWISE_PORT", "1002")
    monkeypatch.setenv("LOADWISE_OPTIMIZATION__MAX_ENSEMBLE_SIZE", "7")
    settings = load_settings(path)
    assert (settings.port, settings.host, settings.optimization.max_ensemble_size) == (1002, "127.0.0.2", 7)
    assert load_settings(path, port=1003).port == 1003


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("LOADWISE_APIKEY", "there is LOADWISE_API_KEY"),
        ("loadwise_admin_keys", "there is LOADWISE_ADMIN_KEY"),
        ("LOADWISE_XYZZY_2", "no such setting: unset"),
        ("LOADWISE_OPTIMIZATIONS__DWELL_SEC", "no such setting"),
        ("LOADWISE_OPTIMIZATION__XYZZY", "no such setting"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "secret")
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_variables_of_a_kubernetes_service_are_told_by_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADWISE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LOADWISE_PORT", "tcp://10.0.0.1:2240")
    with pytest.raises(ConfigurationError, match="enableServiceLinks: false"):
        load_settings()


@pytest.mark.parametrize("variable", ["LOADWISE_URL", "LOADWISE_ENGINES", "loadwise_log_level"])
def test_variables_that_others_read_are_none_of_its_business(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "warning")
    assert load_settings().port == 2240


@pytest.mark.parametrize("where", ["url", "replicas"])
def test_an_upstreams_address_holds_no_password(where: str) -> None:
    secret = "http://me:hunter2@127.0.0.1:1"
    upstream = {"url": secret} if where == "url" else {"url": "http://127.0.0.1:1", "replicas": [secret]}
    with pytest.raises(ConfigurationError, match="api_key_env") as refusal:
        load_settings(upstreams={"a": upstream})
    assert refusal.value.field == f"upstreams.a.{where}"
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_sets_what_the_origin_recommends(name: str) -> None:
    optimization = load_settings(preset=name).optimization
    for field, value in PRESETS[name].items():
        set_to = optimization.model_dump()[field]
        assert set_to == ({**set_to, **value} if isinstance(value, dict) else value)


def test_a_file_overrides_a_preset(tmp_path: Path) -> None:
    path = yaml_file(
        tmp_path, "preset: production\noptimization: {max_ensemble_size: 3, allow_degrade: true}\n"
    )
    optimization = load_settings(path).optimization
    assert optimization.max_ensemble_size == 3
    assert optimization.allow_degrade is True
    assert optimization.tuning_interval_sec == 60.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_threshold_low": 0.9}, ["load_threshold_low", "0.9", "0..1"]),
        ({"max_ensemble_size": 0}, ["max_ensemble_size", "greater than or equal to 1", "0"]),
        ({"tuning_interval_sec": 0.01}, ["tuning_interval_sec", "0.05"]),
        ({"tuning_interval_sec": float("nan")}, ["tuning_interval_sec", "finite"]),
        ({"compile_mode": "fast"}, ["compile_mode", "'max-autotune'", "'fast'"]),
        ({"ensemble_strategy": "luck"}, ["ensemble_strategy", "weighted_voting", "luck"]),
        ({"tune_sampling": True}, ["temperature", "top_k"]),
        ({"load_weights": {"queue": -1}}, ["queue", "greater than or equal to 0"]),
        ({"surprise": 1}, ["surprise"]),
        ({"ceilings": {"banana": 1}}, ["ceilings.banana", "'max_tokens'"]),
        ({"objectives": {"time_to_first_token_s": -2}}, ["objectives.time_to_first_token_s", "-2"]),
    ],
)
def test_a_wrong_setting_is_refused_with_field_value_and_range(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        OptimizationConfig(**changes)
    assert isinstance(refusal.value, ValueError)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"load_threshold_low": 0.9}, "load_threshold_low"),
        ({"tune_sampling": True}, "tune_sampling"),
        ({"objectives": {"time_to_first_token_s": -2}}, "objectives.time_to_first_token_s"),
        ({"ranges": {"top_k": {"low": 2, "high": 1}}}, "ranges.top_k.low"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_refusal_begins_with_its_field_in_plain_words(changes: dict, field: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        OptimizationConfig(**changes)
    assert refusal.value.field == field
    assert str(refusal.value).startswith(field)
    assert "Value error" not in str(refusal.value)
    with pytest.raises(ConfigurationError) as nested:
        load_settings(optimization=changes)
    assert nested.value.field == f"optimization.{field}"
    assert str(nested.value).startswith(f"optimization.{field}")


@pytest.mark.parametrize("field", ["id", "sha256"])
def test_two_keys_that_cannot_be_told_apart_are_refused(field: str) -> None:
    keys = [{"id": "a", "sha256": "1" * 64}, {"id": "b", "sha256": "2" * 64}]
    keys[1][field] = keys[0][field]
    with pytest.raises(ConfigurationError, match=f"same {field}"):
        load_settings(keys=keys)


def test_a_change_is_validated_as_a_whole_and_leaves_the_original() -> None:
    config = OptimizationConfig()
    changed = config.changed({"load_threshold_low": 0.5, "load_threshold_high": 0.9})
    assert (changed.load_threshold_low, changed.load_threshold_high) == (0.5, 0.9)
    assert config.load_threshold_low == 0.3
    with pytest.raises(ConfigurationError, match="load_threshold_low"):
        config.changed({"load_threshold_high": 0.2})
    with pytest.raises(ConfigurationError, match="Known: enable_torch_compile"):
        config.changed({"nonsense": 1})


def test_a_group_of_settings_given_in_part_keeps_its_other_values() -> None:
    config = OptimizationConfig(objectives={"time_to_first_token_s": 3.0, "time_per_output_token_s": 0.2})
    changed = config.changed({"objectives": {"time_to_first_token_s": 2.0}})
    assert changed.objectives.time_to_first_token_s == 2.0
    assert changed.objectives.time_per_output_token_s == 0.2
    with pytest.raises(ConfigurationError, match="objectives"):
        config.changed({"objectives": {"time_to_first_token": 2.0}})


def test_weights_that_are_all_zero_are_refused() -> None:
    zero = dict.fromkeys(OptimizationConfig().load_weights.model_dump(), 0.0)
    with pytest.raises(ConfigurationError, match="at least one weight"):
        OptimizationConfig(load_weights=zero)


def test_a_range_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must not be above"):
        RangeSettings(low=2, high=1)


def test_policy_carries_every_setting_the_core_needs() -> None:
    policy = OptimizationConfig(
        tuning_interval_sec=7,
        ranges={"temperature": {"low": 0.1, "high": 0.9}, "top_k": {"low": 1, "high": 50}},
        tune_sampling=True,
        objectives={"time_to_first_token_s": 2.0},
    ).policy()
    assert policy.dwell_s == 7
    assert policy.ranges["top_k"].high == 50
    assert policy.objectives.time_to_first_token_s == 2.0
    assert OptimizationConfig(dwell_sec=3).policy().dwell_s == 3


def test_an_open_door_is_refused_without_a_key() -> None:
    with pytest.raises(ConfigurationError, match="--api-key"):
        load_settings(host="0.0.0.0")
    assert load_settings(host="0.0.0.0", api_key="secret").host == "0.0.0.0"


def test_two_listeners_cannot_share_a_port() -> None:
    with pytest.raises(ConfigurationError, match="admin_port is 2240, which is the port too") as caught:
        load_settings(admin_port=2240)
    assert caught.value.field == "admin_port"
    assert load_settings(port=0, admin_port=0).admin_port == 0


def test_one_name_cannot_be_both_a_model_and_an_upstream() -> None:
    with pytest.raises(ConfigurationError, match="names must differ"):
        load_settings(models={"a": {"path": "x"}}, upstreams={"a": {"url": "http://127.0.0.1:1"}})


def test_a_secret_is_never_repeated_in_a_message_or_a_dump() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(keys=[{"id": "a", "sha256": "plain-text-key"}])
    assert "plain-text-key" not in str(refusal.value)
    assert "hunter2" not in load_settings(api_key="hunter2").model_dump_json()


@pytest.mark.parametrize(
    ("text", "match"),
    [("a: [1", "no valid YAML"), ("- 1\n", "must hold a mapping"), ("surprise: 1\n", "surprise")],
)
def test_a_wrong_file_is_refused_in_one_message(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        load_settings(yaml_file(tmp_path, text))


def test_an_empty_file_changes_nothing_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert read_yaml(yaml_file(tmp_path, "")) == {}
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "nowhere.yaml")


def test_a_setting_can_be_explained() -> None:
    assert explain_setting("max_ensemble_size")["maximum"] == 64
    assert "adaptive" in explain_setting("optimization.ensemble_strategy")["enum"]
    with pytest.raises(ConfigurationError, match="Unknown setting 'nothing'"):
        explain_setting("nothing")
