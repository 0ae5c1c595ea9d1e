"""How often a request may be tried again, so that retries cannot double a failing engine's load."""

from __future__ import annotations


class RetryBudget:
    """Retries are at most `share` of all requests, and a small reserve for quiet servers.

    Source: the retry budget of Finagle and Linkerd. A request makes at most `attempts` attempts.
    """

    def __init__(self, share: float = 0.2, reserve: float = 10.0, attempts: int = 3) -> None:
        self.attempts = attempts
        self._share = share
        self._reserve = reserve
        self._saved = reserve

    def note_request(self) -> None:
        """A new request earns its share of a retry."""
        self._saved = min(self._reserve, self._saved + self._share)

    def take(self, attempts_made: int) -> bool:
        """Whether a request that failed `attempts_made` times may be tried once more."""
        if attempts_made >= self.attempts or self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
