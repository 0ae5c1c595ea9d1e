"""The small parts that hold state: versions, conversations, what is in flight, the window, the store."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.choices import Remembered
from loadwise.decision.facts import Ending, Objectives, Outcome, RequestFacts, StrategyName
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.optimizer.assignment import UNASSIGNED
from loadwise.optimizer.config_store import ConfigStore
from loadwise.optimizer.conversations import Conversations
from loadwise.optimizer.host import HostSensor
from loadwise.optimizer.in_flight import InFlight, Open
from loadwise.optimizer.model_manager import DynamicModelManager
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.tallies import Measure, Row, Tallies
from loadwise.ports import Dispatch
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.window import ServiceWindow
from loadwise.testing import FakeClock


def dispatch(member: str = "fast", request_id: str = "r") -> Dispatch:
    return Dispatch(
        request=RequestFacts(request_id=request_id),
        member_id=member,
        replica_id=f"{member}/0",
        engine=None,  # type: ignore[arg-type]
        strategy=StrategyName.BALANCED,
        reason="named",
        propensity=1.0,
    )


def entry(opened: Dispatch, owed_tokens: float) -> Open:
    return Open(opened, "local", owed_tokens, Objectives(), UNASSIGNED)


def outcome(finished_s: float, ending: Ending = Ending.SUCCEEDED, **changes: object) -> Outcome:
    values: dict[str, object] = {
        "request_id": "r", "member_id": "fast", "replica_id": "fast/0", "ending": ending,
        "finished_s": finished_s, "total_s": 0.2, **changes,
    }  # fmt: skip
    return Outcome(**values)  # type: ignore[arg-type]


class TestVersions:
    def test_the_first_version_is_active_and_later_ones_wait(self) -> None:
        manager = DynamicModelManager()
        assert manager.register("model", "weights-1") == "v1"
        assert manager.register("model", "weights-2") == "v2"
        assert manager.get("model") == "weights-1"
        assert manager.activate("model", "v2") == "weights-2"
        assert manager.get("model", "v1") == "weights-1"
        assert [v["active"] for v in manager.versions("model")] == [False, True]

    def test_rolling_back_undoes_the_last_activation(self) -> None:
        manager = DynamicModelManager()
        manager.register("model", 1)
        manager.register("model", 2)
        manager.activate("model", "v2")
        assert manager.rollback("model") == 1
        with pytest.raises(UnknownNameError, match="no version before 'v1'"):
            manager.rollback("model")

    def test_the_last_good_version_comes_back_once_and_a_pinned_one_stays(self) -> None:
        manager = DynamicModelManager()
        manager.register("configuration", "good")
        manager.record_performance("configuration", within_objectives=True, measured={"goodput": 0.99})
        manager.register("configuration", "bad", "bold")
        manager.activate("configuration", "bold")
        assert manager.restore_last_good("configuration") == "good"
        assert manager.active("configuration").version == "v1"
        manager.activate("configuration", "bold")
        assert manager.active("configuration").pinned
        assert manager.restore_last_good("configuration") is None
        assert manager.get("configuration") == "bad"

    def test_a_version_outside_its_objectives_yields_to_the_last_good_one_by_itself(self) -> None:
        manager = DynamicModelManager()
        manager.register("model", "proven")
        assert manager.record_performance("model", within_objectives=True) == "proven"
        manager.register("model", "bold")
        manager.activate("model", "v2")
        assert manager.record_performance("model", within_objectives=False) == "proven"
        assert manager.versions("model")[1]["reverted"] is True
        manager.activate("model", "v2")
        assert manager.record_performance("model", within_objectives=False) == "bold"

    def test_without_a_good_version_nothing_is_put_back(self) -> None:
        manager = DynamicModelManager()
        manager.register("model", 1)
        manager.register("model", 2)
        manager.activate("model", "v2")
        assert manager.restore_last_good("model") is None

    def test_unknown_names_and_versions_are_named_in_the_error(self) -> None:
        manager = DynamicModelManager()
        with pytest.raises(UnknownNameError, match="Nothing is registered as 'x'"):
            manager.get("x")
        manager.register("x", 1)
        with pytest.raises(UnknownNameError, match="Known: v1"):
            manager.activate("x", "v9")
        with pytest.raises(ConfigurationError, match="already has a version"):
            manager.register("x", 2, "v1")

    def test_old_versions_are_forgotten_but_never_the_active_one(self) -> None:
        manager = DynamicModelManager(max_versions=3)
        for number in range(10):
            manager.register("model", number)
        assert [v["version"] for v in manager.versions("model")] == ["v1", "v9", "v10"]
        assert manager.names() == ["model"]
        assert manager.history()[0]["event"] == "registered"


class TestConversations:
    def test_a_conversation_keeps_its_memory_within_its_tenant_and_route(self) -> None:
        book = Conversations()
        book.keep("a", "auto", "c1", Remembered(member_id="fast"))
        assert book.recall("a", "auto", "c1") == Remembered(member_id="fast")
        assert book.recall("b", "auto", "c1") is None

    def test_the_least_recently_used_is_forgotten_first(self) -> None:
        book = Conversations(size=2)
        for name in ("old", "kept"):
            book.keep("t", "auto", name, Remembered(member_id="fast"))
        book.recall("t", "auto", "old")
        book.keep("t", "auto", "new", Remembered(member_id="fast"))
        assert book.recall("t", "auto", "kept") is None
        assert len(book) == 2

    def test_a_member_that_leaves_is_forgotten(self) -> None:
        book = Conversations()
        book.keep("t", "auto", "c", Remembered(member_id="fast"))
        book.keep("t", "auto", "d", Remembered(member_id="slow", left="fast"))
        book.forget_member("fast")
        assert book.recall("t", "auto", "c") is None
        assert book.recall("t", "auto", "d") == Remembered(member_id="slow")


class TestInFlight:
    @given(st.lists(st.sampled_from(["fast", "accurate"]), max_size=30), st.randoms())
    def test_everything_returns_to_zero_whatever_the_order_of_ends(self, members, random) -> None:
        book = InFlight()
        opened = [dispatch(member) for member in members]
        for one in opened:
            book.open(entry(one, 0.1))
        assert book.by_pool.get("local", 0) == len(opened)
        random.shuffle(opened)
        assert all(book.close(one) is not None for one in opened)
        assert not any(book.close(one) is not None for one in opened)
        assert (len(book), book.by_member, book.by_pool, book.by_replica, book.owed_tokens) == (
            0,
            {},
            {},
            {},
            {},
        )

    def test_two_dispatches_of_one_request_are_counted_apart(self) -> None:
        book = InFlight()
        first, second = dispatch(), dispatch()
        book.open(entry(first, 5.0))
        book.open(entry(second, 7.0))
        book.close(first)
        assert book.by_replica["fast/0"] == 1
        assert book.owed_tokens["local"] == 7.0


class TestWindow:
    def test_averages_are_those_of_recent_answers(self) -> None:
        window = ServiceWindow(span_s=10.0)
        window.add(outcome(1.0, total_s=9.0))
        window.add(outcome(20.0, total_s=0.1, time_to_first_token_s=0.05))
        window.add(outcome(21.0, ending=Ending.FAILED, status=500))
        reading = window.reading(25.0, 3)
        assert reading.avg_latency_ms == pytest.approx(100.0)
        assert reading.error_fraction == 0.5
        assert reading.time_to_first_token_s == 0.05
        assert reading.active_requests == 3
        assert reading.requests_per_s == pytest.approx(0.2)

    def test_nothing_seen_is_nothing_said(self) -> None:
        reading = ServiceWindow().reading(5.0, None)
        assert (reading.avg_latency_ms, reading.error_fraction, reading.requests_per_s) == (None, None, None)

    def test_a_client_that_left_says_nothing_about_speed(self) -> None:
        window = ServiceWindow()
        window.add(outcome(1.0, ending=Ending.ABANDONED))
        assert window.reading(1.0, 0).avg_latency_ms is None

    def test_the_clients_own_mistakes_are_no_errors_of_ours(self) -> None:
        window = ServiceWindow()
        window.add(outcome(1.0, ending=Ending.FAILED, status=400))
        assert window.reading(2.0, 0).error_fraction is None
        window.add(outcome(1.0, ending=Ending.FAILED, status=429))
        assert window.reading(2.0, 0).error_fraction == 0.0
        window.add(outcome(1.0, ending=Ending.FAILED, status=500))
        assert window.reading(2.0, 0).error_fraction == 0.5

    def test_each_pools_figures_are_of_its_own_replicas(self) -> None:
        window = ServiceWindow()
        window.add(outcome(1.0, total_s=0.1))
        window.add(outcome(1.0, ending=Ending.FAILED, status=500, replica_id="far/0"))
        near = window.reading(2.0, 0, lambda replica: replica != "far/0")
        far = window.reading(2.0, 0, lambda replica: replica == "far/0")
        assert (near.error_fraction, far.error_fraction) == (0.0, 1.0)
        assert (near.avg_latency_ms, far.avg_latency_ms) == (pytest.approx(100.0), None)

    @given(st.lists(st.tuples(st.floats(0, 3), st.floats(1e-6, 900), st.sampled_from("ab")), max_size=60))
    def test_averages_are_those_of_the_answers_that_are_left(
        self, answers: list[tuple[float, float, str]]
    ) -> None:
        window, now_s, seen = ServiceWindow(span_s=10.0, size=20), 0.0, []
        for after_s, total_s, replica_id in answers:
            now_s += after_s
            seen.append((now_s, total_s, replica_id))
            window.add(outcome(now_s, total_s=total_s, replica_id=replica_id))
            window.reading(now_s, 0)
        for replica_id in "ab":
            left = [t for at_s, t, of in seen[-20:] if at_s >= now_s - 10.0 and of == replica_id]
            reading = window.reading(now_s, 0, lambda each, wanted=replica_id: each == wanted)
            # Times are kept in whole nanoseconds.
            expected = pytest.approx(1000.0 * sum(left) / len(left), abs=1e-6) if left else None
            assert reading.avg_latency_ms == expected

    def test_another_thread_that_reads_changes_no_sum(self) -> None:
        window, ended = ServiceWindow(span_s=0.5), threading.Event()
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)

        def read() -> int:
            readings = 0
            while not ended.is_set() or not readings:
                window.reading(0.3 * number, 0)
                readings += 1
            return readings

        number = 0
        with ThreadPoolExecutor(2) as pool:
            try:
                reading = [pool.submit(read) for _ in range(2)]
                for number in range(20_000):
                    window.add(outcome(0.3 * number, total_s=0.1, replica_id=f"m/{number % 2}"))
                    window.reading(0.3 * number, 0)
            finally:
                ended.set()
                sys.setswitchinterval(before_s)
        assert all(each.result() > 0 for each in reading)
        assert window.reading(0.3 * number, 0).avg_latency_ms == pytest.approx(100.0)
        assert window.reading(0.3 * number + 9.0, 0).avg_latency_ms is None

    def test_a_full_window_still_knows_its_rate(self) -> None:
        window = ServiceWindow(span_s=60.0, size=10)
        for number in range(100):
            window.add(outcome(number * 0.1))
        assert window.reading(10.0, 0).requests_per_s == pytest.approx(10.0, rel=0.1)


class TestRecorder:
    def test_whoever_looks_sees_every_request_however_many_are_counted_together(self) -> None:
        clock = FakeClock()
        recorder = Recorder(OptimizationConfig(), clock=clock)
        for number in range(1, 40):
            recorder.record(outcome(clock.monotonic_s(), output_tokens=5, time_to_first_token_s=0.1))
            clock.advance(0.7)
            if number % 5 == 0:
                now_s = clock.monotonic_s()
                assert len(recorder.history) == number
                assert recorder.timeline.over(3600.0, now_s).requests == number
                assert recorder.objective_counts.over("auto", 3600.0, now_s).judged == number
                assert recorder.summary().requests == number
        times = [entry.wall_s for entry in recorder.history]
        assert times == sorted(set(times))


class TestTallies:
    @given(st.lists(st.tuples(st.sampled_from(Measure), st.text(max_size=3), st.booleans()), max_size=80))
    def test_what_is_packed_bit_by_bit_is_all_that_was_counted(
        self, values: list[tuple[Measure, str, bool]]
    ) -> None:
        tallies, packed = Tallies(), b""
        for measure, unit, optimised in values:
            tallies.add(measure, unit, 0.5, optimised=optimised)
            packed = tallies.packed()
        kept = msgspec.msgpack.decode(packed, type=list[Row]) if packed else []
        assert sorted(kept) == sorted(tallies.rows())
        assert sorted(Tallies.of(kept).rows()) == sorted(kept)
        if kept:
            assert sorted(msgspec.msgpack.decode(Tallies.of(kept).packed(), type=list[Row])) == sorted(kept)


class TestConfigStore:
    def test_an_applied_version_survives_a_restart(self, tmp_path: Path) -> None:
        base = OptimizationConfig()
        applied = base.changed({"max_ensemble_size": 5, "ceilings": {"max_tokens": 100}})
        ConfigStore(tmp_path, base).save(applied, 7)
        assert ConfigStore(tmp_path, base).load() == (applied, 7)
        assert (tmp_path / "optimization.json").stat().st_mode & 0o077 == 0

    def test_a_changed_file_wins_over_what_was_applied(self, tmp_path: Path) -> None:
        ConfigStore(tmp_path, OptimizationConfig()).save(OptimizationConfig(max_ensemble_size=5), 7)
        changed = OptimizationConfig(tuning_interval_sec=5.0)
        assert ConfigStore(tmp_path, changed).load() == (changed, 1)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"base": 1}', '{"config": {"nope": 1}}', "\x00"])
    def test_a_broken_file_is_set_aside(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "optimization.json"
        path.write_text(content)
        store = ConfigStore(tmp_path, OptimizationConfig())
        assert store.load()[1] == 1
        if content != '{"base": 1}':
            assert len(list(path.parent.glob("*.corrupt-*"))) == 1

    def test_values_out_of_range_in_the_file_are_refused(self, tmp_path: Path) -> None:
        base = OptimizationConfig()
        ConfigStore(tmp_path, base).save(base, 2)
        path = tmp_path / "optimization.json"
        kept = json.loads(path.read_text())
        kept["config"]["max_ensemble_size"] = -1
        path.write_text(json.dumps(kept))
        assert ConfigStore(tmp_path, base).load() == (base, 1)

    def test_without_a_folder_nothing_is_kept(self) -> None:
        store = ConfigStore(None, OptimizationConfig())
        store.save(OptimizationConfig(max_ensemble_size=9), 3)
        assert store.load() == (OptimizationConfig(), 1)


class TestHost:
    def test_readings_are_percentages_or_absent(self) -> None:
        sensor = HostSensor()
        for reading in (sensor.read(), sensor.read()):
            assert reading.cpu_usage_percent is None or 0 <= reading.cpu_usage_percent <= 100
            assert reading.memory_usage_percent is not None
            assert 0 < reading.memory_usage_percent <= 100

    def test_without_a_gpu_its_use_is_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert HostSensor().read().gpu_utilization_percent is None

    def test_the_busiest_gpu_counts_and_one_that_fails_is_absent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = FakeGpus([20, 85])
        monkeypatch.setitem(sys.modules, "pynvml", library)
        sensor = HostSensor()
        assert sensor.read().gpu_utilization_percent == 85.0
        library.broken = True
        assert sensor.read().gpu_utilization_percent is None

    def test_a_driver_that_is_missing_is_a_normal_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = FakeGpus([])
        library.broken = True
        monkeypatch.setitem(sys.modules, "pynvml", library)
        assert HostSensor().read().gpu_utilization_percent is None


class FakeGpus(ModuleType):
    """NVIDIA's library over GPUs as busy as told."""

    class NVMLError(Exception):
        pass

    def __init__(self, used: list[int]) -> None:
        super().__init__("pynvml")
        self.used = used
        self.broken = False

    def nvmlInit(self) -> None:
        self.nvmlDeviceGetCount()

    def nvmlDeviceGetCount(self) -> int:
        if self.broken:
            raise self.NVMLError("driver not loaded")
        return len(self.used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=self.used[handle])
