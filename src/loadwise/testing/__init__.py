"""Contract suites and fakes that ship: real or fake, every part passes the same tests."""

from loadwise.testing.clock import FakeClock
from loadwise.testing.engine import FakeEngine
from loadwise.testing.fakes import FakeTokenEngine, Turnstile
from loadwise.testing.upstream import Behaviour, StubUpstream

__all__ = ["Behaviour", "FakeClock", "FakeEngine", "FakeTokenEngine", "StubUpstream", "Turnstile"]
