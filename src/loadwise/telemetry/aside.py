"""Files that cannot be understood are set aside under a name that says so, and only the newest is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path


def set_aside(path: Path, wall_s: float) -> Path:
    """The file, with SQLite's own files beside it, is `NAME.corrupt-TIMESTAMP` now; its new path.

    An older one of the same name is gone, so that what was set aside takes no more room than the file.
    """
    for old in path.parent.glob(f"{path.name}*.corrupt-*"):
        old.unlink()
    stamp = datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    for ending in ("-wal", "-shm"):
        beside = path.with_name(path.name + ending)
        if beside.exists():
            beside.replace(path.with_name(f"{path.name}{ending}.corrupt-{stamp}"))
    return path.replace(path.with_name(f"{path.name}.corrupt-{stamp}"))
