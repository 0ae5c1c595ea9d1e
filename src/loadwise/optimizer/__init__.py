"""The origin's classes: they hold state, call the core, act and record."""

from loadwise.optimizer.factory import Optimization, build
from loadwise.optimizer.fleet import MemberParts

__all__ = ["MemberParts", "Optimization", "build"]
