"""Contract suites and fakes that ship: real or fake, every part passes the same tests."""

from loadwise.testing.clock import FakeClock
from loadwise.testing.fakes import FakeTokenEngine, Turnstile

__all__ = ["FakeClock", "FakeTokenEngine", "Turnstile"]
