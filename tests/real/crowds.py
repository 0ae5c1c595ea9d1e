"""Clients in crowds, and bounds in seconds on a machine that may stand still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import httpx

# A sleeper that is woken later than this was held up by the machine; busy processes delay it by milliseconds.
STANDSTILL_S: Final = 0.25
_NAP_S: Final = 0.02


class RunningTime:
    """Seconds in which this machine ran: gaps in which a thread that only sleeps was not woken are left out.

    A virtual machine is stopped for seconds when its host has no core for it; every process stands still
    then, and no bound in seconds says anything of them.
    """

    def __init__(self) -> None:
        self.stood_still_s = 0.0
        self._woken_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="running-time", daemon=True)

    def __enter__(self) -> RunningTime:
        self._woken_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now_s(self) -> float:
        """Seconds on a clock that stands still when the machine does."""
        while True:
            # In this order: the sleeper writes them in the other one.
            woken_s = self._woken_s
            stood_still_s, now_s = self.stood_still_s, time.monotonic()
            if now_s - woken_s <= STANDSTILL_S:
                return now_s - stood_still_s
            # The sleeper will tell whether the machine stood still.
            time.sleep(_NAP_S)

    def _sleep(self) -> None:
        while not self._over.wait(_NAP_S):
            now_s = time.monotonic()
            gap_s = now_s - self._woken_s
            if gap_s > STANDSTILL_S:
                self.stood_still_s += gap_s
            self._woken_s = now_s


def holds(condition: Callable[[], Any], within_s: float) -> Any:
    """What the condition returns once it is true; fails with its last value after `within_s` of running."""
    with RunningTime() as clock:
        deadline_s = clock.now_s() + within_s
        while True:
            found = condition()
            if found:
                return found
            assert clock.now_s() < deadline_s, (
                f"not within {within_s:g} s, besides {clock.stood_still_s:.1f} s of standstill: {found!r}"
            )
            time.sleep(0.05)


class Crowd:
    """So many clients, each of which asks for `tokens` again and again, and reads what it gets.

    As a context: at its end the clients ask no more and read their last answers. `leave` makes all of them
    hang up at once instead. An answer that is not a whole 200 fails the test.
    """

    def __init__(self, rig: Any, number: int, tokens: int, *, stream: bool = False) -> None:
        self.answers = 0
        self._rig, self._number = rig, number
        self._asked = {"model": rig.model, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        self._enough = False
        self._failure: BaseException | None = None
        # The task of all clients, and where it runs, once it does.
        self._clients: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._thread = threading.Thread(target=self._run, name="crowd")

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._enough = True
        if kind is not None:
            self._hang_up()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """Every client has hung up in the middle of what it reads."""
        self._hang_up()
        self._thread.join()

    def _hang_up(self) -> None:
        if self._clients is not None and self._thread.is_alive():
            loop, task = self._clients
            # The last of them may go by itself now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._failure = error

    async def _all(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients = asyncio.get_running_loop(), task
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(timeout=240, trust_env=False, verify=False, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for place in range(self._number):
                group.create_task(self._one(client, place))

    async def _one(self, client: httpx.AsyncClient, place: int) -> None:
        body = {**self._asked, "prompt": f"def f{place}("}
        while not self._enough:
            async with client.stream("POST", self._rig.url + "/v1/completions", json=body) as answer:
                last = b""
                async for piece in answer.aiter_raw():
                    last = (last + piece)[-200:]
                assert answer.status_code == 200, last
                assert not self._asked["stream"] or last.endswith(b"data: [DONE]\n\n"), last
            self.answers += 1
