"""One attempt at an answer: it ends exactly once, and its outcome is told exactly once."""

from __future__ import annotations

import asyncio
from types import TracebackType

from loadwise.decision.facts import GENERATED, Ending, Outcome
from loadwise.decision.stages import queued_s
from loadwise.errors import RequestError
from loadwise.ports import Answer, Clock, Director, Dispatch, Progress


class Attempt:
    """Inside `with Attempt(...)` a dispatched request is served; leaving the block records how it went.

    No exception, or one after `over()`: succeeded, unless the answer is an error (status 400 or more, or
    failed inside its stream). Cancelled: abandoned. Any other exception: failed.
    """

    __slots__ = ("_began_s", "_clock", "_director", "_over_s", "_since_s", "answer", "dispatch")

    def __init__(
        self, director: Director, clock: Clock, dispatch: Dispatch, since_s: float | None = None
    ) -> None:
        """`since_s` is when the gateway began to work on it: the body was there, or the last attempt over."""
        self._director = director
        self._since_s = since_s
        self._clock = clock
        self.dispatch = dispatch
        self.answer: Answer | None = None
        self._over_s: float | None = None

    def __enter__(self) -> Attempt:
        self._began_s = self._clock.monotonic_s()
        return self

    def over(self) -> None:
        """The engine is done: what the client does from here on says nothing about it."""
        self._over_s = self._clock.monotonic_s()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._over_s is not None:
            ending = Ending.FAILED if self._answered_badly() else Ending.SUCCEEDED
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            ending = Ending.ABANDONED
        else:
            ending = Ending.FAILED
        self._director.finish(self.dispatch, self._outcome(ending, error))

    def _answered_badly(self) -> bool:
        return self.answer is None or self.answer.status >= 400 or self.answer.progress.failed

    def _outcome(self, ending: Ending, error: BaseException | None) -> Outcome:
        now_s = self._clock.monotonic_s() if self._over_s is None else self._over_s
        dispatch, answer = self.dispatch, self.answer
        progress = None if answer is None else answer.progress
        seen_s = None if progress is None else progress.first_token_s
        first_s = None if seen_s is None else max(0.0, seen_s - self._began_s)
        status = error.status if isinstance(error, RequestError) else None
        return Outcome(
            request_id=dispatch.request.request_id,
            member_id=dispatch.member_id,
            replica_id=dispatch.replica_id,
            ending=ending,
            finished_s=now_s,
            route=dispatch.request.model,
            total_s=now_s - self._began_s,
            time_to_first_token_s=first_s,
            gateway_s=None if self._since_s is None else max(0.0, self._began_s - self._since_s),
            queue_s=_queue_s(progress, first_s, dispatch),
            prompt_tokens=None if progress is None else progress.prompt_tokens,
            cached_tokens=0 if progress is None else progress.cached_tokens,
            output_tokens=None if progress is None else progress.output_tokens,
            finish_reason=None if progress is None else progress.finish_reason,
            concurrency=dispatch.concurrency,
            work=dispatch.work,
            wait_s=dispatch.wait_s,
            beside=dispatch.beside,
            load_score=dispatch.load_score,
            generated=dispatch.request.endpoint in GENERATED and not (progress and progress.aside),
            status=status if answer is None else answer.status,
            control=dispatch.control,
        )


def _queue_s(progress: Progress | None, first_s: float | None, dispatch: Dispatch) -> float | None:
    """What the engine told, else an estimate."""
    if progress is not None and progress.queued_s is not None and first_s is not None:
        return min(progress.queued_s, first_s)
    return queued_s(first_s, dispatch.wait_s, dispatch.read_s)
