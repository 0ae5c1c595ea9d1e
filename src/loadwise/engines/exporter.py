"""Makes the OpenVINO form of a model folder, once, in an environment of its own.

The exporter wants another transformers than the engines do, so it never shares their environment: it
lives under the cache folder, from locked versions, and runs as a child.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from loadwise.engines.folders import OPENVINO_FORM
from loadwise.errors import EngineError

REQUIREMENTS = Path(__file__).with_name("exporter_requirements.txt")
# Where CPU builds of torch come from; elsewhere the default index has large ones for GPUs.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INSTALL_S = 1800.0
EXPORT_S = 1800.0
EXPORT = (
    "export",
    "openvino",
    "--task",
    "text-generation-with-past",
    "--disable-convert-tokenizer",
)
KEPT = (*OPENVINO_FORM, "config.json", "generation_config.json")
# What transformers says when a model's weights are not all in its files: the others are random numbers then.
MADE_UP = "newly initialized"
# Of a failed command's output, so much is shown.
SHOWN_CHARS = 300


class Exporter:
    """Exports model folders into `cache_dir`; each folder's weights are exported once."""

    def __init__(self, cache_dir: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._cache_dir = cache_dir
        self._say = say
        self._one_at_a_time = asyncio.Lock()

    def known(self, folder: Path, weights: str = "fp16") -> Path | None:
        """The folder's OpenVINO form, where it was made before."""
        made = self._place(folder, weights)
        return made if all((made / name).is_file() for name in KEPT[:3]) else None

    async def export(self, folder: Path, weights: str = "fp16") -> Path:
        """The folder with its OpenVINO form; `EngineError` says why there is none.

        `weights` are kept as fp32, fp16, int8 or int4.
        """
        async with self._one_at_a_time:
            made = self.known(folder, weights)
            if made is not None:
                return made
            python = await self._environment()
            self._say(f"Exporting {folder.name} to OpenVINO (once; it is kept under {self._cache_dir})")
            return await self._exported(python, folder, weights)

    async def _exported(self, python: Path, folder: Path, weights: str) -> Path:
        place = self._place(folder, weights)
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=".making-"))
        try:
            command = [str(python), "-m", "optimum.commands.optimum_cli", *EXPORT, "--weight-format", weights]
            # Layers that groups of 128 do not divide get smaller ones.
            command += ["--group-size-fallback", "adjust"] if weights == "int4" else []
            said = await _run(
                [*command, "--model", str(folder), str(scratch / "out")], EXPORT_S, "the export"
            )
            if MADE_UP in said:
                raise EngineError(f"{folder.name} lacks some of its weights, which the export made up")
            (scratch / "kept").mkdir()
            for name in KEPT:
                source = scratch / "out" / name
                if source.is_file():
                    shutil.move(source, scratch / "kept" / name)
            shutil.rmtree(place, ignore_errors=True)
            (scratch / "kept").rename(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self.known(folder, weights) is None:
            raise EngineError(f"The export of {folder.name} left no {OPENVINO_FORM[0]}.")
        return place

    async def _environment(self) -> Path:
        """The exporter's interpreter, installed if it is not there yet."""
        wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
        folder = self._cache_dir / f"exporter-{wanted}"
        python = folder / "bin" / "python"
        if (folder / "complete").is_file():
            return python
        self._say(f"Installing the OpenVINO exporter into {folder} (once, a few minutes)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        await _run(
            [sys.executable, "-m", "venv", str(folder)], INSTALL_S, "making the exporter's environment"
        )
        await self._install(python)
        (folder / "complete").touch()
        return python

    async def _install(self, python: Path) -> None:
        """Everything from the usual index, but torch from that of CPU builds where it can be reached."""
        lines = REQUIREMENTS.read_text(encoding="utf-8").split()
        torch = next(line for line in lines if line.startswith("torch=="))
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        quick = ["--retries", "1", "--timeout", "15", "--index-url", CPU_INDEX]
        try:
            await _run([*pip, *quick, torch], INSTALL_S, "installing the exporter's torch")
        except EngineError:
            await _run([*pip, torch], INSTALL_S, "installing the exporter's torch")
        others = [line for line in lines if line != torch]
        await _run([*pip, *others], INSTALL_S, "installing the exporter")

    def _place(self, folder: Path, weights: str) -> Path:
        kind = "" if weights == "fp16" else f"-{weights}"
        return self._cache_dir / "openvino" / f"{folder.name}-{fingerprint(folder)}{kind}"


def fingerprint(folder: Path) -> str:
    """Changes with the folder's weights and configuration, without reading the weights."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        facts = path.stat()
        digest.update(f"{path.name}:{facts.st_size}:{facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


async def _run(command: Sequence[str], limit_s: float, what: str) -> str:
    """Runs a command to its end; what it said, or `EngineError` with the end of that when it fails."""
    # The child must find its own packages, not ours.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise EngineError(f"{what} took longer than {limit_s:g} s") from None
        raise
    said = output.decode("utf-8", "replace")
    if process.returncode:
        shown = " ".join(said.split())[-SHOWN_CHARS:]
        raise EngineError(f"{what} failed ({process.returncode}): {shown}")
    return said
