"""How much a model is used: what the planner weighs a build's cost against."""

from __future__ import annotations

from loadwise.decision.build_facts import ModelUse

# Less than this says nothing about the hours to come.
OBSERVED_S = 3600.0


class Usage:
    """The busiest stretch between two readings, as calls per second, since the model was given."""

    def __init__(self, now_s: float) -> None:
        self.calls = 0
        self._since_s = self._read_s = now_s
        self._read_calls = 0
        self._peak_per_s = 0.0

    def read(self, now_s: float, step_s: float | None) -> ModelUse | None:
        """None while it was not observed for long enough or the time of a call is unknown."""
        if now_s > self._read_s:
            rate = (self.calls - self._read_calls) / (now_s - self._read_s)
            self._peak_per_s = max(self._peak_per_s, rate)
            self._read_s, self._read_calls = now_s, self.calls
        if step_s is None or now_s - self._since_s < OBSERVED_S:
            return None
        # What has lasted so long will, as far as anyone can tell, last as long again.
        return ModelUse(busy_fraction=min(1.0, self._peak_per_s * step_s), steady_s=now_s - self._since_s)
