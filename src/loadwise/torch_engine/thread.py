"""The engine's own thread: steps while there is work, sleeps while there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows

from loadwise.torch_engine.engine import Engine, Output
from loadwise.torch_engine.sequence import Sequence

Deliver = Callable[[Rows[Output]], None]
Failed = Callable[[Rows[Sequence], BaseException], None]


class EngineThread:
    """Runs an engine; `deliver` and `failed` are called on its thread and must not block.

    A step that raises ends the sequences that were running, with the error; the others go on.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Deliver,
        failed: Failed,
        name: str = "torch-engine",
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._failed = failed
        # Called first on the thread itself, for what torch keeps per thread.
        self._prepare = prepare
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """The engine steps from now on."""
        self._thread.start()

    def wake(self) -> None:
        """There may be work; call after submitting or cancelling."""
        self._wake.set()

    def close(self) -> None:
        """After the step in progress the thread has ended; waits for it, so not for event loops."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while not self._closing:
            self._wake.clear()
            if self._engine.busy:
                self._step()
            else:
                self._wake.wait()

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:  # noqa: BLE001 - whatever the device raises belongs to those who ran
            self._failed(self._engine.fail(), error)
            return
        if outputs:
            self._deliver(outputs)
