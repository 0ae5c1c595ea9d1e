"""The machine's own figures, read without blocking."""

from __future__ import annotations

import importlib
from typing import Any

import psutil

from loadwise.clock import SystemClock
from loadwise.decision.facts import HostReading
from loadwise.logs import get_logger
from loadwise.ports import Clock

log = get_logger(__name__)


def _gpu_library() -> Any | None:
    """NVIDIA's management library, ready to be asked, or None: a machine without GPU is normal."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        log.debug("no_gpu_readings", reason=str(error))
        return None
    return library


def _cpu_seconds() -> tuple[float, float]:
    """Processor seconds spent busy, and all there were, since the machine started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time in `user` and `nice` already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - idle, total


# The first reading spans from the import to itself: none has to wait, none is made of one tick.
_IMPORTED = _cpu_seconds()


class HostSensor:
    """Reads processor, memory and GPU use; what cannot be read is None.

    The processor's use is that since the reading before, over at least 0.1 processor seconds, so
    no reading waits.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._before = _IMPORTED
        self._cpu_percent: float | None = None
        self._gpu = _gpu_library()

    def read(self) -> HostReading:
        """The machine's figures now, each 0..100 or None."""
        return HostReading(
            read_s=self._clock.monotonic_s(),
            cpu_usage_percent=self._cpu(),
            memory_usage_percent=psutil.virtual_memory().percent,
            gpu_utilization_percent=self._gpu_percent(),
        )

    def _cpu(self) -> float | None:
        busy, total = _cpu_seconds()
        passed = total - self._before[1]
        # Kernels count in ticks of 10 ms: a shorter interval says nothing.
        if passed >= (0.1 if self._cpu_percent is not None else 0.02):
            share = (busy - self._before[0]) / passed
            self._cpu_percent = 100.0 * min(1.0, max(0.0, share))
            self._before = (busy, total)
        return self._cpu_percent

    def _gpu_percent(self) -> float | None:
        if self._gpu is None:
            return None
        try:
            count = self._gpu.nvmlDeviceGetCount()
            handles = [self._gpu.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            used = [float(self._gpu.nvmlDeviceGetUtilizationRates(handle).gpu) for handle in handles]
        except self._gpu.NVMLError as error:
            log.warning("gpu_not_readable", reason=str(error))
            return None
        return max(used, default=None)
