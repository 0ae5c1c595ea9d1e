"""The documentation's pictures are taken by a command, and it works."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {
    "dashboard": 1280, "dashboard-dark": 1280, "dashboard-phone": 390, "dashboard-phone-dark": 390,
    "report": 900,
}  # fmt: skip


async def test_the_command_takes_every_picture_of_the_documentation(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tools" / "screenshots.py"), "--minutes", "0.1", "--rate", "8",
        "--out", str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    for name, width in WIDTHS.items():
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == width
            assert len(set(picture.convert("L").tobytes())) > 8


def test_the_documentation_shows_those_pictures_and_they_are_small() -> None:
    page = (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")
    for name in WIDTHS:
        assert f"images/{name}.png" in page
        assert (ROOT / "docs" / "images" / f"{name}.png").stat().st_size < 150_000
