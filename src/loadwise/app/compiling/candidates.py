"""The forms of a causal model that may serve here, and how each is opened."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadwise.compiler import ModelCompiler
from loadwise.compiler.backends import BACKENDS
from loadwise.compiler.store import PackageStore
from loadwise.compiler.workshop import Workshop
from loadwise.engines.exporter import Exporter
from loadwise.engines.held_out import held_out
from loadwise.engines.openvino.precision import PRECISIONS
from loadwise.errors import BuildError, EngineError
from loadwise.ports import Availability, Clock, JsonObject, Judge, TokenEngine, at_once
from loadwise.settings import Settings
from loadwise.torch_engine.agreement import Agreement
from loadwise.torch_engine.weights import KINDS

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
    # The folder of what was made, which the next start opens; None where nothing was.
    package: Path | None = None


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

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        clock: Clock,
        say: Callable[[str], None],
        device: str = "cpu",
        left_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        """`left_s` says how long a build may still take."""
        self._folder = folder
        self._left_s = left_s
        self._device = device
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
        small = [
            Candidate(backend="torchao", mode=kind, quantised=True, open=partial(self._small, kind))
            for kind in KINDS
        ]
        others = [
            Candidate(backend=name, mode=mode, quantised=form.quantised, open=partial(self._other, name))
            for name in ("onnxruntime", "tensorrt")
            for mode, form in BACKENDS[name].forms.items()
        ]
        eager = Candidate(backend="torch", mode="eager", open=self._eager)
        return [eager, *openvino, *compiled, *small, *others]

    async def _eager(self) -> Opened:
        seen: list[tuple[Callable[..., Any], Judge]] = []

        def look(model: Callable[..., Any], _: str, *, judge: Judge, **__: Any) -> Callable[..., Any]:
            seen.append((model, judge))
            return model

        engine = self._torch(look)
        await engine.start()
        model, judge = seen[0]
        return Opened(engine, _agreement(await asyncio.to_thread(judge, model, "float32", at_once)))

    def _compiler(self) -> ModelCompiler:
        """One that may build wherever the model is: nobody is served here."""
        compiler = ModelCompiler(self._settings.optimization, workshop=self._workshop(), automatic=False)
        compiler.drained = lambda model_id: True
        return compiler

    async def _compiled(self, mode: str) -> Opened:
        compiler = self._compiler()
        engine = self._torch(compiler.compile_model)
        await engine.start()
        try:
            judged = await asyncio.to_thread(self._built, compiler, mode)
            package = await asyncio.to_thread(self._package, compiler, self._folder.name, mode)
            return Opened(engine, judged, compiler.close, package)
        except BaseException:
            await engine.close()
            compiler.close()
            raise

    def _built(self, compiler: ModelCompiler, mode: str) -> Agreement:
        """What was found of the build that serves now; `BuildError` when none does."""
        name = self._folder.name
        self._wait(compiler, name, mode)
        compiler.serve_mode(mode)
        found = compiler.compilation_stats[name]
        build = found["builds"].get(mode, found)
        if found["mode"] != mode:
            raise BuildError(build["cause"] or found["cause"], remedy=build["remedy"])
        return _agreement(build["agreement"])

    def _wait(self, compiler: ModelCompiler, name: str, mode: str) -> None:
        """The build has ended; `BuildError` where the budget ended it."""
        compiler.build(name, mode)
        left_s = self._left_s()
        if not compiler.wait(None if isinf(left_s) else max(0.0, left_s)):
            compiler.stop_builds()
            compiler.wait()
            raise BuildError("not run: the budget was used up while it was made; raise --budget")

    def _package(self, compiler: ModelCompiler, name: str, mode: str) -> Path | None:
        """Where the model's build of that mode is kept: the last used, as others are for other devices."""
        served, store = compiler.get_compiled_model(name), self._store()
        parameters = None if served is None else served.digest()
        for entry, facts in reversed(store.entries().items()):
            if (facts.get("parameters"), facts.get("mode")) == (parameters, mode):
                return store.root / entry
        return None

    def _store(self) -> PackageStore:
        return PackageStore(
            self._settings.cache_dir / "builds", self._settings.optimization.build_store_bytes
        )

    def _workshop(self) -> Workshop:
        return Workshop.keeping(["inductor"], self._store(), self._settings.cache_dir / "building")

    async def _small(self, kind: str) -> Opened:
        """The torch engine with small weights, its step compiled where that is faster."""
        require(BACKENDS["torchao"]().available())
        if self._device != "cpu":
            raise BuildError("not run: small weights are judged on the processor only")
        compiler = self._compiler()
        name, forcing = f"{self._folder.name}-{kind}", await self._reference()
        engine = self._torch(compiler.compile_model, name, kind)
        await engine.start()

        def judged() -> tuple[Agreement, Path | None]:
            self._wait(compiler, name, compiler.config.compile_mode)
            served: Any = compiler.get_compiled_model(name)
            found = forcing.judge(served, "float32")
            return found, self._package(compiler, name, compiler.config.compile_mode)

        try:
            agreement, package = await asyncio.to_thread(judged)
            return Opened(engine, agreement, compiler.close, package)
        except BaseException:
            await engine.close()
            compiler.close()
            raise

    async def _openvino(self, mode: str) -> Opened:
        from loadwise.engines.openvino import OpenVinoEngine

        lacking = PRECISIONS[mode].lacking() if self._device == "cpu" else "OpenVINO serves on the processor"
        if lacking is not None:
            raise BuildError(f"not run: {lacking}")
        form = await self._exporter.export(self._folder, PRECISIONS[mode].weights)
        engine = OpenVinoEngine(
            form, clock=self._clock, max_running=PLACES, kv_cache_bytes=KV_CACHE_BYTES, precision=mode
        )
        await engine.start()
        try:
            return Opened(engine, await self._forced(form, mode), package=form)
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
        require(BACKENDS[name]().available())
        raise BuildError(_NOT_FOR_DECODING)

    def _torch(
        self, compile_step: Callable[..., object] | None, name: str | None = None, weights: str | None = None
    ) -> TokenEngine:
        from loadwise.engines.torch import TorchTokenEngine

        return TorchTokenEngine(
            self._folder,
            clock=self._clock,
            model_id=name or self._folder.name,
            max_running=PLACES,
            kv_cache_bytes=KV_CACHE_BYTES,
            prompts=self._settings.build_prompts,
            device=self._device,
            weights=weights,
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

        loaded = load(self._folder, device=self._device, dtype="float32")
        runner = Runner(loaded, PLACES, loaded.context_tokens)
        return Forcing(loaded, runner.original, PLACES, prepare=runner.prepare, texts=self._texts)


def _agreement(found: JsonObject) -> Agreement:
    return Agreement(**{field: found[field] for field in Agreement.__dataclass_fields__})


def require(availability: Availability) -> None:
    """`BuildError` where something is missing."""
    if not availability.ok:
        raise BuildError(f"not run: {availability.reason} is missing")


_NOT_FOR_DECODING = "not run: it only reads its arguments, and a decode step writes its key/value cache"
