"""Who writes a journal's folder: one process at a time, said by a lock that ends with it, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from loadwise.errors import LoadwiseError

LOCK: Final = "writer.lock"


class TakenError(LoadwiseError):
    """Another process writes this folder."""


class Owner:
    """The right to write a folder, from its making until `close`.

    Raises `TakenError` where another process has it, `OSError` where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        made_private(folder)
        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(self._descriptor, 20, 0).decode("ascii", "replace")
            os.close(self._descriptor)
            raise TakenError(
                f"another server (process {other or 'unknown'}) writes the journal in {folder}; give each "
                "server a state_dir, or a journal.directory, of its own"
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Another process may write the folder."""
        os.close(self._descriptor)


class Right:
    """Takes the right to write a folder when it is free, and knows whether another process had it before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner: Owner | None = None
        self._waited = False
        # It was another's when it was asked for first, and is this one's now.
        self.succeeded = False

    def take(self) -> None:
        """This process has the right, until `close`; raises as `Owner` does."""
        if self._owner is not None:
            return
        try:
            self._owner = Owner(self._folder)
        except TakenError:
            self._waited = True
            raise
        self.succeeded, self._waited = self._waited, False

    def close(self) -> None:
        """Another process may have it."""
        if self._owner is not None:
            self._owner.close()


def made_private(folder: Path) -> None:
    """The folder exists and only its owner may look in."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
