"""The folder that reports are exported to: private, and bounded in files and bytes.

Only regular files that bear a report's name are counted and removed, the oldest report first; whatever else
lies in the folder is left alone.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadwise.errors import CapacityError, RequestError
from loadwise.logs import get_logger
from loadwise.ports import JsonObject
from loadwise.telemetry import report as report_text
from loadwise.telemetry import report_page

log = get_logger(__name__)
_OURS: Final = re.compile(r"(?P<report>report-\d{8}T[0-9.]+Z(-\d+)?)\.(json|md|html)")
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLimits:
    """How many files, and bytes of files, reports may take together; a report is three files."""

    files: int = 300
    size_bytes: int = 32 * 1024**2


@dataclass(slots=True)
class _Kept:
    """The files of one report that was exported before."""

    written_ns: int = 0
    size_bytes: int = 0
    paths: tuple[str, ...] = ()


class ReportFolder:
    """Exports reports to `folder`, which is made when the first is."""

    def __init__(self, folder: Path, limits: ReportLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or ReportLimits()
        self._writing = threading.Lock()

    def write(self, made: JsonObject) -> Path:
        """The report is there as JSON, Markdown and HTML, named by its time; the path of the JSON.

        Older reports made room. Raises `CapacityError` for one that alone is too large, and `RequestError`
        (503) where the folder takes none.
        """
        files = _files(made)
        needed_bytes = sum(map(len, files.values()))
        self._check(len(files), needed_bytes)
        stamp = str(made["generated"]).replace(":", "").replace("-", "")
        try:
            with self._writing:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._make_room(len(files), needed_bytes)
                return self._written(f"report-{stamp}", files)
        except OSError as error:
            raise RequestError(
                f"The report could not be written to {self._folder}: {error.strerror or error}. See to the "
                "folder (report_dir), or ask without export_file.",
                status=503,
                kind="server_error",
                code="report_not_written",
            ) from error

    def _check(self, files: int, size_bytes: int) -> None:
        limits = self._limits
        if size_bytes > limits.size_bytes or files > limits.files:
            raise CapacityError(
                f"The report takes {files} files of {size_bytes} bytes together, and {limits.files} files of "
                f"{limits.size_bytes} bytes are allowed. Raise report_max_files or report_max_bytes."
            )

    def _make_room(self, files: int, size_bytes: int) -> None:
        """The oldest reports are gone until so many files, of so many bytes, fit too."""
        kept = sorted(self._kept().values(), key=lambda report: (report.written_ns, report.paths))
        count, total = sum(len(report.paths) for report in kept), sum(report.size_bytes for report in kept)
        for report in kept:
            if count + files <= self._limits.files and total + size_bytes <= self._limits.size_bytes:
                return
            for path in report.paths:
                Path(path).unlink()
            log.info("old_report_removed", files=len(report.paths), bytes=report.size_bytes)
            count, total = count - len(report.paths), total - report.size_bytes

    def _kept(self) -> dict[str, _Kept]:
        found: dict[str, _Kept] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                named = _OURS.fullmatch(entry.name)
                if named is None or not entry.is_file(follow_symlinks=False):
                    continue
                status, report = entry.stat(follow_symlinks=False), found.setdefault(named["report"], _Kept())
                report.written_ns = max(report.written_ns, status.st_mtime_ns)
                report.size_bytes += status.st_size
                report.paths = tuple(sorted((*report.paths, entry.path)))
        return found

    def _written(self, stem: str, files: Mapping[str, bytes]) -> Path:
        number, name = 0, stem
        while any(os.path.lexists(self._folder / (name + suffix)) for suffix in files):
            number += 1
            name = f"{stem}-{number}"
        done: list[Path] = []
        try:
            for suffix, content in files.items():
                path = self._folder / (name + suffix)
                with os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:
                    done.append(path)
                    file.write(content)
        except OSError:
            # Half a report would look like a whole one.
            for path in done:
                path.unlink(missing_ok=True)
            raise
        return done[0]


def _files(made: JsonObject) -> dict[str, bytes]:
    """The report's files by suffix, the JSON first."""
    texts = {
        ".json": json.dumps(made, indent=1),
        ".md": report_text.markdown(made),
        ".html": report_page.page(made),
    }
    return {suffix: text.encode() for suffix, text in texts.items()}
