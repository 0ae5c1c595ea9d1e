"""Which engine serves a model folder or an address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadwise.decision.facts import Feature
from loadwise.engines.chosen import Choice, recall
from loadwise.engines.exporter import Exporter
from loadwise.engines.folders import ModelFolder, inspect
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.openvino.precision import PRECISIONS
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.rendering.aside import Aside
from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import ConfigurationError, EngineError, LoadwiseError, MissingExtraError
from loadwise.logs import get_logger
from loadwise.ports import Clock, TokenEngine
from loadwise.settings import ModelSettings, Settings, UpstreamSettings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model folder that is served: by which engine, and why by that one."""

    engine: RenderedEngine
    # "openvino" or "torch".
    kind: str
    # In words, for the status: "OpenVINO form in the folder", "torch: the export failed (...)".
    reason: str


def replica_named(name: str, place: int) -> str:
    """What the replica of a member at that place is called."""
    return f"{name}-{place}"


class Catalogue:
    """Opens what the settings name; one exporter and one tokenizer per vocabulary for all members."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        compile_step: Any = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._compile_step = compile_step
        self._exporter = Exporter(settings.cache_dir, say)
        self._tokenizers: dict[str, Tokenizer] = {}

    async def open_model(self, name: str, model: ModelSettings, replica_id: str | None = None) -> OpenedModel:
        """The folder's engine, started; `ConfigurationError` says in one line why there is none."""
        folder = inspect(model.path)
        tokenizer = self._tokenizer(folder.path)
        token_engine, kind, reason = await self._token_engine(name, folder, model)
        # Who names the engine or a form wants that one's numbers, and its memory, and no others.
        free = model.engine == "auto" and model.form is None
        aside = self._aside(name, folder) if free and kind == "openvino" else None
        if aside is not None:
            reason += f"; torch beside it for {', '.join(aside.features)}"
        engine = RenderedEngine(token_engine, tokenizer, name, replica_id or f"{name}-0", self._clock, aside)
        return OpenedModel(engine=engine, kind=kind, reason=reason)

    def _aside(self, name: str, folder: ModelFolder) -> Aside | None:
        """Torch for what OpenVINO's pipeline does not tell; None where the folder or torch is lacking."""
        if not folder.has_safetensors or find_spec("torch") is None:
            return None
        return Aside(frozenset({Feature.TOP_LOGPROBS}), lambda: self._torch(name, folder, "cpu", plain=True))

    def open_upstream(
        self, name: str, upstream: UpstreamSettings, api_key: str | None = None
    ) -> tuple[OpenAIEngine, ...]:
        """One engine per replica, not yet started."""
        return tuple(
            OpenAIEngine(
                str(url),
                replica_id=replica_named(name, place),
                clock=self._clock,
                model=upstream.model,
                api_key=api_key,
                timeouts=self._settings.timeouts,
                capacity_requests=upstream.capacity_requests,
                context_tokens=upstream.context_tokens,
                endpoints=upstream.endpoints,
                features=upstream.features,
                probe=upstream.probe,
            )
            for place, url in enumerate((upstream.url, *upstream.replicas))
        )

    async def _formed(
        self, name: str, folder: ModelFolder, form: str, device: str
    ) -> tuple[TokenEngine, str, str]:
        """The form that the settings name, and no other: its numbers are why it was named."""
        backend, _, mode = form.partition("/")
        try:
            if backend == "torchao":
                engine, kind = await self._torch(name, folder, device, weights=mode), "torch"
            else:
                engine, kind = (await self._openvino(folder, Choice("openvino", mode)))[0], "openvino"
        except LoadwiseError as error:
            raise ConfigurationError(f"{name} cannot be served as {form}: {error}", field="form") from None
        return engine, kind, f"{form}, as the settings say"

    async def _token_engine(
        self, name: str, folder: ModelFolder, model: ModelSettings
    ) -> tuple[TokenEngine, str, str]:
        """The engine that was asked for; of itself OpenVINO where that works, else torch, and why."""
        wanted, device = model.engine, model.device
        if model.form is not None:
            return await self._formed(name, folder, model.form, device)
        if wanted == "torch" or device != "cpu":
            asked = "torch was asked for" if wanted == "torch" else f"torch serves on {device}"
            return await self._torch(name, folder, device), "torch", asked
        try:
            chosen = recall(self._settings.cache_dir, folder.path)
            if chosen is not None and chosen.engine == "torch" and wanted == "auto":
                return (
                    await self._torch(name, folder, device),
                    "torch",
                    "loadwise compile found torch fastest",
                )
            engine, reason = await self._openvino(folder, chosen)
        except LoadwiseError as error:
            if wanted == "openvino" or not folder.has_safetensors:
                raise ConfigurationError(
                    f"{name} cannot be served by OpenVINO: {error}", field="engine"
                ) from None
            log.warning("served_by_torch", member=name, reason=str(error))
            return await self._torch(name, folder, device), "torch", f"torch, because {error}"
        return engine, "openvino", reason

    async def _openvino(self, folder: ModelFolder, chosen: Choice | None) -> tuple[TokenEngine, str]:
        from loadwise.engines.openvino import OpenVinoEngine

        if find_spec("openvino_genai") is None:
            raise MissingExtraError("OpenVINO GenAI is not installed (pip install 'loadwise[openvino]')")
        mode = chosen.mode if chosen is not None and chosen.engine == "openvino" else None
        place, reason = folder.path, "OpenVINO form in the folder"
        lacking = None if mode is None else PRECISIONS[mode].lacking()
        if lacking is not None:
            raise EngineError(lacking)
        if mode is not None:
            place = await self._exporter.export(folder.path, PRECISIONS[mode].weights)
            reason = f"loadwise compile found OpenVINO in {mode} fastest"
        elif not folder.has_openvino_form:
            place, reason = await self._exporter.export(folder.path), "OpenVINO form made by the exporter"
        settings = self._settings
        engine = OpenVinoEngine(
            place,
            clock=self._clock,
            max_running=settings.max_running,
            queue_limit=settings.queue_limit,
            kv_cache_bytes=settings.kv_cache_bytes,
            precision=mode,
        )
        await engine.start()
        return engine, reason

    async def _torch(
        self,
        name: str,
        folder: ModelFolder,
        device: str,
        weights: str | None = None,
        *,
        plain: bool = False,
    ) -> TokenEngine:
        """`plain`: without builds."""
        if not folder.has_safetensors:
            raise ConfigurationError(
                f"{folder.path} has no weights (*.safetensors) for torch.", field="engine"
            )
        if find_spec("torch") is None:
            raise MissingExtraError(f"{name} needs torch: pip install 'loadwise[torch]'.")
        from loadwise.engines.torch import TorchTokenEngine

        settings = self._settings
        engine = TorchTokenEngine(
            folder.path,
            clock=self._clock,
            model_id=name,
            max_running=settings.max_running,
            queue_limit=settings.queue_limit,
            kv_cache_bytes=settings.kv_cache_bytes,
            compile_step=None if plain else self._compile_step,
            prompts=settings.build_prompts,
            device=device,
            weights=weights,
        )
        try:
            await engine.start()
        except LoadwiseError:
            raise
        except Exception as error:
            shown = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigurationError(f"{folder.path} cannot be loaded: {shown:.300}", field="path") from error
        return engine

    def _tokenizer(self, folder: Path) -> Tokenizer:
        """Members with one vocabulary share its encodings, but each keeps its own chat template."""
        tokenizer = Tokenizer.load(folder)
        known = self._tokenizers.setdefault(tokenizer.fingerprint, tokenizer)
        return known.beside(folder)
