"""The control plane: views from live values, commands whole or not at all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from loadwise.decision.facts import Ending
from loadwise.decision.load import FIELDS
from loadwise.errors import CapacityError, ConfigurationError, LoadwiseError, UnknownNameError
from loadwise.ports import AddModel, Configure, Recompile, Start, Stop, View


class TestViews:
    @pytest.mark.parametrize("view", list(View))
    async def test_every_view_is_json_before_and_after_the_start(self, make, view: View) -> None:
        server = make()
        for _ in range(2):
            shown = await server.made.control.read(view)
            assert json.loads(json.dumps(shown, allow_nan=False)) == shown
            await server.optimizer.cycle.tune()

    async def test_metrics_are_measured_at_the_call(self, make) -> None:
        server = make()
        server.host.cpu = 91.0
        shown = await server.made.control.read(View.METRICS)
        assert list(shown) == [*FIELDS, "overall_load_score", "absent"]
        assert shown["cpu_usage_percent"] == 91.0
        assert shown["queue_depth"] == 0
        assert shown["gpu_utilization"] is None
        assert "gpu_utilization" in shown["absent"]
        server.host.cpu = None
        shown = await server.made.control.read(View.METRICS)
        assert shown["cpu_usage_percent"] is None
        assert "cpu_usage_percent" in shown["absent"]

    async def test_reading_metrics_decides_nothing(self, make) -> None:
        server = make()
        await server.made.control.read(View.METRICS)
        assert server.optimizer.parameter_tuner.get_current_strategy() is None

    async def test_the_dashboard_has_the_documented_keys_and_live_values(self, make) -> None:
        server = make()
        await server.optimizer.start_optimization()
        server.end(server.dispatch())
        shown = await server.made.control.read(View.DASHBOARD)
        await server.optimizer.stop_optimization()
        assert list(shown) == [
            "timestamp", "system_status", "current_strategy", "load_score", "optimization_metrics",
            "server_metrics", "ensemble_status", "improvement", "rollout",
        ]  # fmt: skip
        assert list(shown["optimization_metrics"]) == [
            "compilation_enabled", "ensemble_models", "avg_optimization_time_ms", "performance_improvement",
        ]  # fmt: skip
        assert list(shown["server_metrics"]) == [
            "cpu_usage",
            "memory_usage",
            "gpu_utilization",
            "throughput_rps",
        ]
        assert shown["current_strategy"] == "quality"
        assert shown["optimization_metrics"]["performance_improvement"] is None
        assert shown["server_metrics"]["gpu_utilization"] is None
        assert shown["ensemble_status"] == {
            "active_models": ["fast", "balanced", "accurate"],
            "selection_distribution": {"accurate": 1.0},
        }

    async def test_the_status_names_configuration_and_version(self, make) -> None:
        shown = await make().made.control.read(View.STATUS)
        assert shown["config"]["ensemble_strategy"] == "adaptive"
        assert shown["config_version"] == 1
        assert shown["system_status"] == "starting"

    async def test_the_ensemble_shows_unknown_quality_as_unknown(self, make) -> None:
        server = make(qualities={"a": None, "b": 0.5})
        shown = await server.made.control.read(View.ENSEMBLE)
        assert {m["model_id"]: m["quality"] for m in shown["models"]} == {"a": None, "b": 0.5}
        assert [m["error_rate"] for m in shown["models"]] == [0.0, 0.0]
        assert [m["outcomes"] for m in shown["models"]] == [0, 0]


class TestReports:
    async def test_an_exported_report_lies_under_the_report_folder(self, make, tmp_path: Path) -> None:
        server = make()
        server.end(server.dispatch())
        shown = await server.made.control.read(View.REPORT, export_file=True)
        path = Path(shown["exported_to"])
        assert path.parent == tmp_path / "reports"
        kept = json.loads(path.read_text())
        assert kept["grade"] == shown["grade"] == "B"
        assert kept["performance_history"][0]["model"] == "accurate"
        assert path.with_suffix(".md").read_text().startswith("# Performance report")
        assert path.with_suffix(".html").read_text().startswith("<!doctype html>")

    async def test_two_reports_of_one_second_do_not_overwrite_each_other(self, make, tmp_path: Path) -> None:
        server = make()
        for _ in range(3):
            await server.made.control.read(View.REPORT, export_file=True)
        assert len(list((tmp_path / "reports").glob("*.json"))) == 3

    async def test_without_a_report_folder_exporting_is_refused(self, make) -> None:
        server = make(reports=False)
        with pytest.raises(ConfigurationError, match="report_dir"):
            await server.made.control.read(View.REPORT, export_file=True)

    async def test_without_tracking_the_history_is_null(self, make) -> None:
        server = make(enable_performance_tracking=False)
        server.end(server.dispatch())
        shown = await server.made.control.read(View.REPORT)
        assert shown["performance_history"] is None
        assert shown["grade"] is None
        assert shown["success_rate"] is None
        status = await server.made.control.read(View.STATUS)
        assert status["decisions"] is None

    async def test_the_history_is_bounded(self, make) -> None:
        server = make(metrics_history_size=5)
        for number in range(12):
            server.end(server.dispatch(number))
        shown = await server.made.control.read(View.REPORT)
        assert len(shown["performance_history"]) == 5


class TestConfigure:
    async def test_a_change_applies_to_every_part_at_once(self, make) -> None:
        server = make()
        answer = await server.made.control.apply(
            Configure(changes={"ensemble_strategy": "best_of_n", "metrics_history_size": 2})
        )
        assert answer["version"] == 2
        assert answer["changes"]["ensemble_strategy"] == {"from": "adaptive", "to": "best_of_n"}
        assert server.dispatch().config_version == 2
        assert server.optimizer.ensemble_manager.get_ensemble_status()["strategy"] == "best_of_n"

    async def test_omitted_fields_keep_their_value(self, make) -> None:
        server = make(tuning_interval_sec=7.0)
        await server.made.control.apply(Configure(changes={"max_ensemble_size": 2}))
        assert server.optimizer.config.tuning_interval_sec == 7.0

    @pytest.mark.parametrize(
        ("changes", "field", "said"),
        [
            ({"load_threshold_low": 0.9}, None, "load_threshold_low"),
            ({"max_ensemble_size": 0}, "max_ensemble_size", "greater than or equal to 1, not 0"),
            ({"max_ensemble_size": 2, "compile_mode": "fastest"}, "compile_mode", "fastest"),
            ({"colour": "blue"}, "colour", "Unknown setting 'colour'"),
            ({"tuning_interval_sec": float("nan")}, "tuning_interval_sec", "finite"),
        ],
    )
    async def test_what_is_wrong_is_refused_whole_and_named(self, make, changes, field, said) -> None:
        server = make()
        before = server.optimizer.config
        with pytest.raises(ConfigurationError, match=said) as refused:
            await server.made.control.apply(Configure(changes=changes))
        assert field is None or refused.value.field == field
        assert server.optimizer.config is before
        assert server.optimizer.configurations.version == 1

    async def test_a_dry_run_shows_the_difference_and_changes_nothing(self, make) -> None:
        server = make()
        answer = await server.made.control.apply(Configure(changes={"max_ensemble_size": 9}, dry_run=True))
        assert answer["changes"] == {"max_ensemble_size": {"from": 3, "to": 9}}
        assert server.optimizer.config.max_ensemble_size == 3
        assert server.optimizer.configurations.version == 1

    async def test_applied_versions_survive_a_restart_and_give_way_to_a_changed_file(self, make) -> None:
        server = make(state=True)
        await server.made.control.apply(Configure(changes={"max_ensemble_size": 2}))
        again = make(state=True)
        assert again.optimizer.config.max_ensemble_size == 2
        assert again.dispatch().config_version == 2
        assert len(again.optimizer.ensemble_manager.fleet.active()) == 2
        changed = make(state=True, tuning_interval_sec=11.0)
        assert changed.optimizer.config.max_ensemble_size == 3

    async def test_a_smaller_ensemble_retires_but_requests_in_flight_end_well(self, make) -> None:
        server = make()
        dispatch = server.dispatch(model="fast")
        await server.made.control.apply(Configure(changes={"max_ensemble_size": 1}))
        assert server.optimizer.ensemble_manager.fleet.active() == ("accurate",)
        server.end(dispatch)
        assert server.optimizer.recorder.summary().success_rate == 1.0

    async def test_a_state_folder_that_cannot_be_written_leaves_everything_as_it_was(
        self, make, tmp_path: Path
    ) -> None:
        (tmp_path / "state").write_text("a file where a folder should be")
        server = make(state=True)
        with pytest.raises(LoadwiseError, match="state_dir"):
            await server.made.control.apply(Configure(changes={"max_ensemble_size": 2}))
        assert server.optimizer.config.max_ensemble_size == 3
        assert server.optimizer.configurations.version == 1

    async def test_the_same_configuration_again_is_no_new_version(self, make) -> None:
        server = make()
        assert (await server.made.control.apply(Configure(changes={})))["version"] == 1


class TestRunning:
    async def test_start_and_stop_may_be_asked_twice(self, make) -> None:
        server = make()
        control = server.made.control
        said = [(await control.apply(command))["status"] for command in (Start(), Start(), Stop(), Stop())]
        assert said == ["started", "already_running", "stopped", "already_stopped"]
        assert (await control.read(View.STATUS))["system_status"] == "bypassed"

    async def test_bypassed_from_the_beginning_is_said(self, make) -> None:
        server = make()
        server.optimizer.bypass()
        assert (await server.made.control.read(View.STATUS))["system_status"] == "bypassed"

    async def test_before_anything_was_measured_all_name_the_same_strategy(self, make) -> None:
        server = make()
        server.optimizer.bypass()
        in_force = server.dispatch().strategy
        for view in (View.STATUS, View.DASHBOARD):
            assert (await server.made.control.read(view))["current_strategy"] == in_force
        strategy = (await server.made.control.read(View.REPORT))["strategy"]
        assert (strategy["name"], strategy["reason"], strategy["load_score"]) == (
            in_force,
            "unknown_load",
            None,
        )

    async def test_what_a_client_spoilt_is_no_failure_in_the_history(self, make) -> None:
        server = make()
        server.end(server.dispatch(), Ending.FAILED, status=400)
        server.end(server.dispatch(), Ending.FAILED, status=500)
        shown = await server.made.control.read(View.REPORT)
        seen = [(entry["success"], entry["ending"]) for entry in shown["performance_history"]]
        assert seen == [(None, "client_error"), (False, "failed")]
        assert shown["success_rate"] == 0.0

    async def test_commands_at_the_same_time_come_one_after_the_other(self, make) -> None:
        server = make()
        changes = [{"max_ensemble_size": size} for size in (1, 2, 4, 5)]
        answers = await asyncio.gather(*(server.made.control.apply(Configure(changes=c)) for c in changes))
        assert [answer["version"] for answer in answers] == [2, 3, 4, 5]


class TestModels:
    async def test_a_listed_model_joins(self, make) -> None:
        server = make(max_ensemble_size=4)
        await server.made.control.apply(AddModel(model_id="spare", initial_weight=0.9))
        shown = await server.made.control.read(View.ENSEMBLE)
        assert shown["models"][-1]["model_id"] == "spare"
        assert shown["models"][-1]["weight"] == 0.9
        assert server.dispatch(model="spare").member_id == "spare"

    async def test_adding_a_member_twice_leaves_its_weight(self, make) -> None:
        server = make(max_ensemble_size=4)
        control = server.made.control
        first = await control.apply(AddModel(model_id="spare", initial_weight=0.9))
        again = await control.apply(AddModel(model_id="spare", initial_weight=0.1))
        assert (first["status"], again["status"]) == ("added", "already_active")
        assert (first["weight"], again["weight"]) == (0.9, 0.9)
        assert again["ensemble"]["models"][-1]["weight"] == 0.9

    async def test_a_member_that_stands_by_joins_without_the_catalogue(self, make) -> None:
        server = make(standby=["fast"])
        await server.made.control.apply(AddModel(model_id="fast"))
        assert "fast" in server.optimizer.ensemble_manager.fleet.active()
        assert server.catalogue.opened == []

    async def test_an_unknown_name_is_refused(self, make) -> None:
        server = make(max_ensemble_size=9)
        with pytest.raises(UnknownNameError, match="Known: spare, other"):
            await server.made.control.apply(AddModel(model_id="../../etc/passwd"))

    async def test_a_full_ensemble_starts_no_engine_and_names_its_size(self, make) -> None:
        server = make()
        with pytest.raises(CapacityError, match="max_ensemble_size is 3"):
            await server.made.control.apply(AddModel(model_id="spare"))
        assert server.catalogue.opened == []

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
    async def test_a_weight_out_of_range_is_refused(self, make, weight: float) -> None:
        server = make(max_ensemble_size=4)
        with pytest.raises(ConfigurationError, match="initial_weight"):
            await server.made.control.apply(AddModel(model_id="spare", initial_weight=weight))
        assert "spare" not in server.optimizer.ensemble_manager.fleet

    async def test_rebuilding_what_an_engine_serves_is_answered_honestly(self, make) -> None:
        server = make()
        answer = await server.made.control.apply(Recompile(model_id="fast"))
        assert answer["status"] == "nothing_to_compile"
        assert "engine" in answer["reasons"]["fast"]
        with pytest.raises(UnknownNameError):
            await server.made.control.apply(Recompile(model_id="nope"))
        assert (await server.made.control.apply(Recompile()))["models"] == []
