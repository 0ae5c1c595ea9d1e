"""The forms of a causal model that may serve here, and how each is opened."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadwise.compiler import ModelCompiler
from loadwise.compiler.backends import BACKENDS
from loadwise.compiler.store import PackageStore
from loadwise.compiler.workshop import Workshop
from loadwise.engines.exporter import Exporter
from loadwise.engines.held_out import held_out
from loadwise.engines.openvino.precision import PRECISIONS
from loadwise.errors import BuildError, EngineError
from loadwise.ports import Clock, TokenEngine
from loadwise.settings import Settings
from loadwise.torch_engine.agreement import Agreement

if TYPE_CHECKING:
    from loadwise.torch_engine.forcing import Forcing

# Room for 32 sequences of the models that a processor serves.
KV_CACHE_BYTES = 1024**3
PLACES = 32


@dataclass(frozen=True, slots=True)
class Opened:
    """A form that serves, and how far it agrees with the model."""

    engine: TokenEngine
    agreement: Agreement
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form of the model; `open` raises a `LoadwiseError` that says why there is none."""

    backend: str
    mode: str
    open: Callable[[], Awaitable[Opened]]
    quantised: bool = False


class Candidates:
    """Makes every form of the model in `folder` and judges it against the model in fp32.

    `ConfigurationError` when the operator's prompts cannot be read.
    """

    def __init__(self, folder: Path, settings: Settings, clock: Clock, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._exporter = Exporter(settings.cache_dir, say)
        self._texts = held_out(folder, settings.build_prompts)
        self._forcing: Forcing | None = None

    def all(self) -> list[Candidate]:
        """Eager first, with which the others are compared; then the cheapest to make."""
        compiled = [
            Candidate(backend="inductor", mode=mode, open=partial(self._compiled, mode))
            for mode in BACKENDS["inductor"].forms
        ]
        openvino = [
            Candidate(
                backend="openvino",
                mode=mode,
                quantised=form.quantised,
                open=partial(self._openvino, mode),
            )
            for mode, form in PRECISIONS.items()
        ]
        others = [
            Candidate(backend=name, mode=mode, quantised=form.quantised, open=partial(self._other, name))
            for name in ("onnxruntime", "tensorrt", "torchao")
            for mode, form in BACKENDS[name].forms.items()
        ]
        return [Candidate(backend="torch", mode="eager", open=self._eager), *openvino, *compiled, *others]

    async def _eager(self) -> Opened:
        engine = self._torch(None)
        forcing = await self._reference()
        await engine.start()
        predictions = await asyncio.to_thread(lambda: forcing.predictions)
        return Opened(engine, forcing.compare(predictions, "float32"))

    async def _compiled(self, mode: str) -> Opened:
        compiler = ModelCompiler(self._settings.optimization, workshop=self._workshop(), automatic=False)
        engine = self._torch(compiler.compile_model)
        await engine.start()
        try:
            return Opened(engine, await asyncio.to_thread(self._built, compiler, mode), compiler.close)
        except BaseException:
            await engine.close()
            compiler.close()
            raise

    def _built(self, compiler: ModelCompiler, mode: str) -> Agreement:
        """What was found of the build that serves now; `BuildError` when none does."""
        name = self._folder.name
        compiler.build(name, mode)
        compiler.wait()
        compiler.serve_mode(mode)
        found = compiler.compilation_stats[name]
        build = found["builds"].get(mode, found)
        if found["mode"] != mode:
            raise BuildError(build["cause"] or found["cause"], remedy=build["remedy"])
        judged = build["agreement"]
        return Agreement(**{field: judged[field] for field in Agreement.__dataclass_fields__})

    def _workshop(self) -> Workshop:
        cache = self._settings.cache_dir
        store = PackageStore(cache / "builds", self._settings.optimization.build_store_bytes)
        return Workshop.keeping(["inductor"], store, cache / "building")

    async def _openvino(self, mode: str) -> Opened:
        from loadwise.engines.openvino import OpenVinoEngine

        form = await self._exporter.export(self._folder, PRECISIONS[mode].weights)
        engine = OpenVinoEngine(
            form, clock=self._clock, max_running=PLACES, kv_cache_bytes=KV_CACHE_BYTES, precision=mode
        )
        await engine.start()
        try:
            return Opened(engine, await self._forced(form, mode))
        except BaseException:
            await engine.close()
            raise

    async def _forced(self, form: Path, mode: str) -> Agreement:
        """The form's predictions, made by a child, held against the model's."""
        import numpy as np
        import torch

        forcing = await self._reference()
        texts_read = await asyncio.to_thread(lambda: forcing.texts)
        with tempfile.TemporaryDirectory(prefix="forcing-") as scratch:
            texts, logits = Path(scratch) / "texts.npy", Path(scratch) / "logits.npy"
            np.save(texts, texts_read.numpy(), allow_pickle=False)
            command = [sys.executable, "-m", "loadwise.engines.openvino.forcing"]
            command += [str(form), mode, str(texts), str(logits)]
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            _, errors = await process.communicate()
            if process.returncode:
                last = (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise EngineError(f"OpenVINO could not read the texts: {last:.300}")
            actual = torch.from_numpy(np.load(logits, allow_pickle=False))
        return forcing.compare(actual, PRECISIONS[mode].precision)

    async def _other(self, name: str) -> Opened:
        """Backends of modules, which do not serve a causal model's decoding."""
        availability = BACKENDS[name]().available()
        if not availability.ok:
            raise BuildError(f"not run: {availability.reason} is missing")
        raise BuildError(_NOT_FOR_DECODING[name])

    def _torch(self, compile_step: Callable[..., object] | None) -> TokenEngine:
        from loadwise.engines.torch import TorchTokenEngine

        return TorchTokenEngine(
            self._folder,
            clock=self._clock,
            model_id=self._folder.name,
            max_running=PLACES,
            kv_cache_bytes=KV_CACHE_BYTES,
            prompts=self._settings.build_prompts,
            compile_step=compile_step,  # type: ignore[arg-type]  # ModelCompiler.compile_model is one
        )

    async def _reference(self) -> Forcing:
        if self._forcing is None:
            self._forcing = await asyncio.to_thread(self._load_reference)
        return self._forcing

    def _load_reference(self) -> Forcing:
        from loadwise.torch_engine.forcing import Forcing
        from loadwise.torch_engine.loading import load
        from loadwise.torch_engine.runner import Runner

        loaded = load(self._folder, dtype="float32")
        runner = Runner(loaded, PLACES, loaded.context_tokens)
        return Forcing(loaded, runner.original, PLACES, prepare=runner.prepare, texts=self._texts)


_NOT_FOR_DECODING = {
    "onnxruntime": "not run: it only reads its arguments, and a decode step writes its key/value cache",
    "tensorrt": "not run: it only reads its arguments, and a decode step writes its key/value cache",
    "torchao": "not run: the torch engine serves no quantised step yet; int8 is under openvino",
}
