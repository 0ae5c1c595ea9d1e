"""The engine's bookkeeping with a runner that needs no torch."""

import threading
from collections.abc import Sequence as Rows

import pytest

from loadwise.errors import RequestError
from loadwise.testing import FakeClock
from loadwise.torch_engine.engine import Engine, Output
from loadwise.torch_engine.scheduler import Limits, Plan
from loadwise.torch_engine.sequence import Finish, Sampled, Sampling, Sequence
from loadwise.torch_engine.statistics import Window
from loadwise.torch_engine.thread import EngineThread

EOS = 0


class Counting:
    """Says 1, 2, 3 ... to everyone; each run takes a tenth of a second of the fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.forgotten: list[int] = []
        self.failing = False

    def run(self, plan: Plan) -> list[tuple[Sequence, Sampled]]:
        self.clock.advance(0.1)
        if self.failing:
            self.failing = False
            raise RuntimeError("device lost")
        ready = [chunk.sequence for chunk in plan.chunks if chunk.last] + list(plan.decodes)
        return [(sequence, Sampled(len(sequence.output) + 1)) for sequence in ready]

    def forget(self, sequence: Sequence) -> None:
        self.forgotten.append(sequence.sequence_id)


def make(
    clock: FakeClock, places: int = 2, waiting: int = 4, eos: Rows[int] = (EOS,)
) -> tuple[Engine, Counting]:
    runner = Counting(clock)
    limits = Limits(places=places, waiting=waiting, context_tokens=20)
    return Engine(runner, limits, eos, clock.monotonic_s), runner


def test_stop_token_ends_the_answer_unless_it_is_to_be_ignored() -> None:
    clock = FakeClock()
    engine, runner = make(clock, eos=(3,))
    stopping = engine.submit([7], Sampling(max_tokens=9))
    ignoring = engine.submit([7], Sampling(max_tokens=4, ignore_eos=True))
    while engine.busy:
        engine.step()
    assert (stopping.output, stopping.finish) == ([1, 2], Finish.STOP)
    assert (ignoring.output, ignoring.finish) == ([1, 2, 3, 4], Finish.LENGTH)
    assert sorted(runner.forgotten) == [1, 2]


def test_sequence_says_how_long_it_waited_for_a_place() -> None:
    clock = FakeClock()
    engine, _ = make(clock, places=1)
    first, second = (engine.submit([7], Sampling(max_tokens=3, ignore_eos=True)) for _ in range(2))
    assert second.queued_s is None
    while engine.busy:
        engine.step()
    assert first.queued_s == 0.0
    assert second.queued_s == pytest.approx(0.3)


def test_statistics_tell_times_and_speeds_of_the_last_seconds() -> None:
    clock = FakeClock()
    engine, _ = make(clock, places=1)
    engine.submit([7] * 4, Sampling(max_tokens=3))
    engine.submit([7] * 2, Sampling(max_tokens=3))
    engine.step()
    engine.step()
    seen = engine.snapshot()
    assert (seen.running, seen.waiting, seen.places, seen.queue) == (1, 1, 1, 4)
    assert seen.cache_usage_fraction == pytest.approx(5 / 20)
    assert seen.time_to_first_token_s == pytest.approx(0.1)
    assert seen.time_per_output_token_s == pytest.approx(0.1)
    assert seen.prompt_tokens_per_s == pytest.approx(4 / 10)
    assert seen.output_tokens_per_s == pytest.approx(2 / 10)
    while engine.busy:
        engine.step()
    last_s = clock.monotonic_s()
    clock.advance(60)
    quiet = engine.snapshot()
    assert quiet.last_token_s == pytest.approx(last_s)
    assert (quiet.running, quiet.output_tokens_per_s, quiet.time_to_first_token_s) == (0, 0.0, None)


def test_failed_step_ends_those_who_ran_and_spares_those_who_wait() -> None:
    clock = FakeClock()
    engine, runner = make(clock, places=1)
    first, second = (engine.submit([7], Sampling(max_tokens=2)) for _ in range(2))
    runner.failing = True
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.fail() == [first]
    while engine.busy:
        engine.step()
    assert second.output == [1, 2]


def test_window_forgets_and_is_exact_when_empty() -> None:
    window = Window(10.0)
    for second in range(100):
        window.add(float(second), 0.1)
    assert window.rate_per_s(99.0) == pytest.approx(0.11)
    assert window.mean(500.0) is None
    assert window.rate_per_s(500.0) == 0.0


class Mailbox:
    """Collects what an engine's thread says, and waits for it."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.errors: list[tuple[list[Sequence], str]] = []
        self.changed = threading.Condition()

    def deliver(self, outputs: Rows[Output]) -> None:
        with self.changed:
            self.outputs += outputs
            self.changed.notify_all()

    def failed(self, sequences: Rows[Sequence], error: BaseException) -> None:
        with self.changed:
            self.errors.append((list(sequences), str(error)))
            self.changed.notify_all()


def test_thread_sleeps_until_woken_and_survives_a_failing_step() -> None:
    clock = FakeClock()
    engine, runner = make(clock)
    mail = Mailbox()
    thread = EngineThread(engine, mail.deliver, mail.failed)
    thread.start()
    runner.failing = True
    lost = engine.submit([7], Sampling(max_tokens=2))
    thread.wake()
    with mail.changed:
        assert mail.changed.wait_for(lambda: mail.errors, 30)
    assert mail.errors == [([lost], "device lost")]
    kept = engine.submit([7], Sampling(max_tokens=2))
    thread.wake()
    with mail.changed:
        assert mail.changed.wait_for(lambda: mail.outputs and mail.outputs[-1].finish is not None, 30)
    assert kept.output == [1, 2]
    thread.close()
    thread.close()


def test_drained_engine_holds_nobody() -> None:
    engine, _ = make(FakeClock(), places=1, waiting=1)
    held = [engine.submit([7], Sampling(max_tokens=9)) for _ in range(2)]
    engine.step()
    with pytest.raises(RequestError):
        [engine.submit([7], Sampling(max_tokens=9)) for _ in range(2)]
    assert engine.drain()[:2] == held
    assert not engine.busy
