"""Takes the documentation's pictures anew: `make screenshots` runs the demonstration and looks at its page.

The page is taken while a member fails, at 1280 and 390 pixels, light and dark, and the report when the day is
over. Needs Chromium, Playwright and Pillow (requirements/dev.txt).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.async_api import async_playwright

IMAGES: Final = Path(__file__).resolve().parents[1] / "docs" / "images"
FLAGS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
# A page is flat: so many colours show it, at a third of the size.
COLOURS: Final = 128
PATIENCE_S: Final = 30.0
# What the demonstration says when its most telling hour begins, and how much of the day passes until then.
FAULT: Final = "answers nothing but errors"
AFTER_HOURS: Final = 1.5


@dataclass(frozen=True)
class Shot:
    """One picture: its name, the window that it shows, and the reader's colours."""

    name: str
    width: int
    height: int
    scheme: str = "light"


PAGES: Final = (
    Shot("dashboard", 1280, 1500),
    Shot("dashboard-dark", 1280, 2170, "dark"),
    Shot("dashboard-phone", 390, 1400),
    Shot("dashboard-phone-dark", 390, 1400, "dark"),
)
REPORT: Final = Shot("report", 900, 1575)


def main(arguments: list[str] | None = None) -> None:
    """The pictures lie in the folder; each is named with its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the demonstration's day takes")
    parser.add_argument("--rate", type=float, default=9.0, help="mean requests per second")
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("There is no chromium here. Install it: sudo apt-get install chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(_take(chromium, options))


async def _take(chromium: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="loadwise-screenshots-") as folder:
        async with _browser(chromium) as browser, _demonstration(options, Path(folder)) as said:
            url = (await _until(said, "Watch it at")).split()[-1]
            await _until(said, FAULT)
            await asyncio.sleep(options.minutes * 60.0 * AFTER_HOURS / 24.0)
            for shot in PAGES:
                await _picture(browser, shot, url, options.out, live=True)
            report = (await _until(said, "Report:")).split()[1]
            await _picture(browser, REPORT, Path(report).as_uri(), options.out, live=False)


@asynccontextmanager
async def _browser(chromium: str) -> AsyncIterator[Any]:
    async with async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield opened
        finally:
            await opened.close()


@asynccontextmanager
async def _demonstration(options: argparse.Namespace, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """What `make demo` says, line by line; it has ended afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadwise.demo", "--minutes", str(options.minutes), "--rate", str(options.rate),
        "--port", "0", "--no-browser", "--leave", "--out", str(folder), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            # A shell in the background ignores interrupts, and so does all that it starts.
            process.terminate()
        await process.wait()


async def _until(said: asyncio.StreamReader, words: str) -> str:
    """The first line with those words."""
    async for line in said:
        if words in (text := line.decode()):
            return text
    sys.exit(f"The demonstration ended before it said {words!r}.")


async def _picture(browser: Any, shot: Shot, url: str, out: Path, *, live: bool) -> None:
    context = await browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    await page.goto(url)
    if live:
        await _live(page)
    path = out / f"{shot.name}.png"
    with Image.open(BytesIO(await page.screenshot())) as taken:
        flat = taken.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        flat.save(path, optimize=True)
    print(f"{path}: {shot.width} x {shot.height}, {path.stat().st_size / 1024:.0f} KiB")
    await context.close()


async def _live(page: Any) -> None:
    """The page shows figures."""
    shown = (
        "document.body.dataset.connection === 'live'"
        " && document.querySelectorAll('#members tbody tr').length > 0"
        " && document.querySelectorAll('#burns tbody tr').length > 0"
    )
    async with asyncio.timeout(PATIENCE_S):
        while not await page.evaluate(shown):  # noqa: ASYNC110 - the page forbids Playwright's own waiting
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
