"""Continuous batching: `step()` is schedule, run, postprocess.

Sequences may be submitted and cancelled from any thread; `step` belongs to one. The lock is held for
bookkeeping only, never while the model runs, so that neither call waits for a matrix product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from loadwise.torch_engine.scheduler import Limits, Plan, Scheduler
from loadwise.torch_engine.sequence import Finish, Sampled, Sampling, Sequence
from loadwise.torch_engine.statistics import Snapshot, Statistics


class Runs(Protocol):
    """What the engine needs of a runner; tests bring one without torch."""

    def run(self, plan: Plan) -> list[tuple[Sequence, Sampled]]:
        """New tokens of a plan."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """A sequence's news after a step: a token, an end, or both. A stop token is not shown."""

    sequence: Sequence
    sampled: Sampled | None = None
    finish: Finish | None = None


class Engine:
    """Joins scheduler, runner and statistics. `now` gives monotonic seconds."""

    def __init__(
        self, runner: Runs, limits: Limits, eos_token_ids: Rows[int], now: Callable[[], float]
    ) -> None:
        self.limits = limits
        self._runner = runner
        self._eos = frozenset(eos_token_ids)
        self._now = now
        self._lock = threading.Lock()
        self._scheduler = Scheduler(limits)
        self._cancelled: list[Sequence] = []
        self._statistics = Statistics()
        self._ids = count(1)

    def submit(self, prompt: Rows[int], sampling: Sampling) -> Sequence:
        """A queued sequence; `RequestError` 400 when it cannot fit, 429 when the queue is full."""
        with self._lock:
            sequence = Sequence(
                sequence_id=next(self._ids), prompt=tuple(prompt), sampling=sampling, arrived_s=self._now()
            )
            self._scheduler.add(sequence)
            return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Its place is free from the next step on; nothing happens when it has ended."""
        with self._lock:
            if sequence.finish is None:
                self._cancelled.append(sequence)

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        with self._lock:
            return bool(self._scheduler.running or self._scheduler.waiting or self._cancelled)

    def step(self) -> list[Output]:
        """One token for everyone who decodes, some prompt read for those who do not, and who ended."""
        with self._lock:
            outputs = self._drop_cancelled()
            plan = self._scheduler.schedule()
            now_s = self._now()
            for chunk in plan.chunks:
                if not chunk.start:
                    chunk.sequence.placed_s = now_s
        sampled = self._runner.run(plan) if plan else []
        with self._lock:
            return outputs + self._postprocess(plan, sampled)

    def fail(self) -> list[Sequence]:
        """After a step that raised: those who ran are ended and returned, those who wait stay."""
        with self._lock:
            failed = list(self._scheduler.running)
            for sequence in failed:
                self._end(sequence, Finish.CANCELLED)
            return failed

    def drain(self) -> list[Sequence]:
        """Everyone is ended and returned."""
        failed = self.fail()
        with self._lock:
            waiting = list(self._scheduler.waiting)
            for sequence in waiting:
                self._end(sequence, Finish.CANCELLED)
            return failed + waiting

    def snapshot(self) -> Snapshot:
        """Counts of now and speeds of the last seconds; waits for no step."""
        with self._lock:
            now_s, stats, running = self._now(), self._statistics, self._scheduler.running
            held = sum(sequence.computed for sequence in running)
            return Snapshot(
                running=len(running),
                waiting=len(self._scheduler.waiting),
                places=self.limits.places,
                queue=self.limits.waiting,
                cache_usage_fraction=min(1.0, held / (self.limits.places * self.limits.context_tokens)),
                prompt_tokens_per_s=stats.prompt_tokens.rate_per_s(now_s),
                output_tokens_per_s=stats.output_tokens.rate_per_s(now_s),
                last_token_s=stats.output_tokens.last_s,
                time_to_first_token_s=stats.first_token_s.mean(now_s),
                time_per_output_token_s=stats.per_token_s.mean(now_s),
            )

    def _drop_cancelled(self) -> list[Output]:
        outputs = []
        for sequence in self._cancelled:
            if sequence.finish is None:
                self._end(sequence, Finish.CANCELLED)
                outputs.append(Output(sequence, finish=Finish.CANCELLED))
        self._cancelled.clear()
        return outputs

    def _postprocess(self, plan: Plan, sampled: Rows[tuple[Sequence, Sampled]]) -> list[Output]:
        now_s = self._now()
        for chunk in plan.chunks:
            chunk.sequence.computed += chunk.length
            self._statistics.prompt(now_s, chunk.length)
        for sequence in plan.decodes:
            sequence.computed += 1
        return [self._take(sequence, token, now_s) for sequence, token in sampled]

    def _take(self, sequence: Sequence, sampled: Sampled, now_s: float) -> Output:
        first = sequence.first_token_s is None
        since_s = sequence.arrived_s if sequence.last_token_s is None else sequence.last_token_s
        self._statistics.token(now_s, since_s=since_s, first=first)
        sequence.first_token_s = now_s if first else sequence.first_token_s
        sequence.last_token_s = now_s
        if self._stops(sequence, sampled.token_id):
            self._end(sequence, Finish.STOP)
            return Output(sequence, finish=Finish.STOP)
        sequence.output.append(sampled.token_id)
        full = sequence.length >= self.limits.context_tokens
        if full or len(sequence.output) >= sequence.sampling.max_tokens:
            self._end(sequence, Finish.LENGTH)
        return Output(sequence, sampled, sequence.finish)

    def _stops(self, sequence: Sequence, token: int) -> bool:
        sampling = sequence.sampling
        return token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos)

    def _end(self, sequence: Sequence, finish: Finish) -> None:
        self._scheduler.finish(sequence, finish)
        self._runner.forget(sequence)
