"""The command line: one file per command, joined in `application`."""

from loadwise.cli.application import main

__all__ = ["main"]
