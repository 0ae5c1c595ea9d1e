"""The composition root: the one place where real parts are chosen and joined."""

from loadwise.app.plugin import setup_optimization_serving
from loadwise.app.server import run_server

__all__ = ["run_server", "setup_optimization_serving"]
