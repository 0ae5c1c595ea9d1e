"""Exported reports: private, bounded, and never in the way of what is not theirs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.errors import CapacityError, RequestError
from loadwise.ports import JsonObject
from loadwise.telemetry.report_folder import ReportFolder, ReportLimits


def made(second: int = 0, size: int = 0) -> JsonObject:
    return {"generated": f"2026-01-02T03:04:{second:02d}.000Z", "grade": "A", "note": "x" * size}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = ReportFolder(tmp_path / "deep" / "reports").write(made())
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700
    assert [path.suffix for path in sorted(path.parent.iterdir())] == [".html", ".json", ".md"]
    assert {mode(path) for path in path.parent.iterdir()} == {0o600}


def test_reports_of_one_moment_do_not_overwrite_each_other(tmp_path: Path) -> None:
    folder = ReportFolder(tmp_path)
    assert len({folder.write(made()) for _ in range(4)}) == 4
    assert len(names(tmp_path)) == 12


def test_the_oldest_report_makes_room_and_strangers_stay(tmp_path: Path) -> None:
    for name in ("notes.md", "report-mine.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "report-20200101T000000Z.md").symlink_to(tmp_path / "notes.md")
    folder = ReportFolder(tmp_path, ReportLimits(files=6))
    paths = [folder.write(made(second)) for second in range(5)]
    for age, path in enumerate(reversed(paths)):
        assert path.exists() is (age < 2)
    assert {"notes.md", "report-mine.json", "report-20200101T000000Z.md"} < set(names(tmp_path))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 20_000), min_size=1, max_size=12), files=st.integers(3, 12))
def test_files_and_bytes_never_pass_the_limits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], files: int
) -> None:
    tmp_path, limits = tmp_path_factory.mktemp("reports"), ReportLimits(files=files, size_bytes=90_000)
    folder = ReportFolder(tmp_path, limits)
    for second, size in enumerate(sizes):
        path = folder.write(made(second, size))
        found = list(tmp_path.iterdir())
        assert path in found
        assert len(found) <= files
        assert sum(each.stat().st_size for each in found) <= limits.size_bytes


def test_a_report_that_alone_is_too_large_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    folder = ReportFolder(tmp_path, ReportLimits(size_bytes=20_000))
    kept = folder.write(made())
    with pytest.raises(CapacityError, match="report_max_bytes"):
        folder.write(made(1, size=30_000))
    assert kept.exists()


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file, no folder")
    with pytest.raises(RequestError, match="report_dir") as caught:
        ReportFolder(tmp_path / "reports").write(made())
    assert caught.value.status == 503
