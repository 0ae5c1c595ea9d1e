"""Where the processes of one engine meet: a private folder with a lock and a socket."""

from __future__ import annotations

import fcntl
import os
from hashlib import blake2b
from pathlib import Path
from typing import Final

from loadwise.errors import ConfigurationError

# What a Unix socket's path may have at most, its closing zero included, on every system.
_PATH_LIMIT: Final = 104


class MeetingPlace:
    """A folder that only this user can enter; whoever holds its lock optimises for all."""

    def __init__(self, state_dir: Path, address: str) -> None:
        name = blake2b(address.encode(), digest_size=6).hexdigest()
        self.folder = state_dir / "inside" / name
        self._lock: int | None = None

    def prepare(self) -> None:
        """The folder is there and private; `ConfigurationError` where it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self.folder.stat()
            if found.st_uid != os.geteuid():
                raise ConfigurationError(f"{self.folder} belongs to another user.", field="state_dir")
            self.folder.chmod(0o700)
        except OSError as error:
            raise ConfigurationError(
                f"{self.folder} cannot be made private ({error}). Set state_dir (LOADWISE_STATE_DIR) to a "
                "folder of yours.",
                field="state_dir",
            ) from None
        if len(os.fsencode(self.socket)) >= _PATH_LIMIT:
            raise ConfigurationError(
                f"{self.socket} is too long for a socket. Set a shorter state_dir (LOADWISE_STATE_DIR).",
                field="state_dir",
            )

    @property
    def socket(self) -> Path:
        """Where the optimising process listens."""
        return self.folder / "s"

    def take(self) -> bool:
        """Whether this process holds the lock now; the system frees it when the process ends."""
        if self._lock is not None:
            return True
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def leave(self) -> None:
        """The lock is free; nothing happens where it was not held."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
