"""Opens the models and upstreams that settings name, and those that may be admitted later."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadwise.decision.facts import Member, Replica
from loadwise.engines.catalogue import Catalogue as Engines
from loadwise.engines.catalogue import replica_named
from loadwise.engines.chosen import quantised, recall_quality
from loadwise.engines.family import FamilyCard, qualities, read_card, relative_costs
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.errors import ConfigurationError, EngineError, MissingExtraError, UnknownNameError
from loadwise.logs import get_logger
from loadwise.optimizer.abilities import common, limited
from loadwise.optimizer.fleet import MemberParts
from loadwise.ports import Engine
from loadwise.settings import ModelSettings, Settings, UpstreamSettings

log = get_logger(__name__)
# Members in this process share the machine.
LOCAL_POOL = "local"


def demo_models() -> dict[str, ModelSettings]:
    """The family that ships with loadwise; `MissingExtraError` when it is not installed."""
    try:
        from loadwise_models import family
    except ImportError:
        raise MissingExtraError(
            "No model and no upstream is named, and the demo models are not installed: "
            "pip install 'loadwise[demo]', or name one with --model NAME=DIR or --upstream NAME=URL."
        ) from None
    return {name: ModelSettings(path=folder) for name, folder in family().items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What model folders say of themselves, by member."""

    quality: Mapping[str, float]
    cost: Mapping[str, float]

    @classmethod
    def of(cls, models: Mapping[str, ModelSettings]) -> Measured:
        """Reads every folder's card; a folder without one has no entry."""
        found = {name: read_card(model.path) for name, model in models.items()}
        cards: dict[str, FamilyCard] = {name: card for name, card in found.items() if card is not None}
        return cls(quality=qualities(cards), cost=relative_costs(cards))


class Members:
    """The server's members: opened once, closed together. Also the catalogue of those to come."""

    def __init__(self, settings: Settings, engines: Engines) -> None:
        self._settings = settings
        self._engines = engines
        self._open: list[Engine] = []
        self._models = dict(settings.models)
        if not settings.models and not settings.upstreams:
            self._models = demo_models()
        self._folders = _folders(settings.model_dir)

    async def open_all(self) -> list[MemberParts]:
        """Every configured member with started engines, in the order of the settings."""
        measured = Measured.of(self._models)
        parts = [await self._model(name, model, measured) for name, model in self._models.items()]
        parts += await asyncio.gather(
            *(self._upstream(name, upstream) for name, upstream in self._settings.upstreams.items())
        )
        await self._require_named({part.member.member_id for part in parts})
        return parts

    async def _require_named(self, members: set[str]) -> None:
        """Refuses settings that name a member which neither exists nor can be admitted later."""
        missing = [(field, name) for field, name in _named_members(self._settings) if name not in members]
        if not missing:
            return
        known = members | set(await self.names())
        for field, name in missing:
            if name not in known:
                raise ConfigurationError(
                    f"{field} names {name!r}, which is no member. Known: {', '.join(sorted(known))}.",
                    field=field,
                )

    async def close(self) -> None:
        """Every engine that was opened is closed."""
        engines, self._open = self._open, []
        await asyncio.gather(*(engine.close() for engine in engines))

    # --- the catalogue ---

    async def names(self) -> Sequence[str]:
        """Folders under `--model-dir`, and models that configured upstreams list."""
        return sorted({*self._folders, *await self._listed()})

    async def open(self, model_id: str) -> MemberParts:
        """The named model as a member with started engines, or `UnknownNameError`."""
        if model_id in self._folders:
            model = ModelSettings(path=self._folders[model_id])
            return await self._model(model_id, model, Measured.of({**self._models, model_id: model}))
        listed = await self._listed()
        if model_id in listed:
            beside, upstream = listed[model_id]
            return await self._upstream(model_id, upstream, beside=beside)
        known = ", ".join(await self.names()) or "none"
        raise UnknownNameError(f"There is no model {model_id!r} in the catalogue. Known: {known}.")

    async def _listed(self) -> dict[str, tuple[str, UpstreamSettings]]:
        """Models and adapters that upstreams serve beside the one that is a member already, by name."""
        found: dict[str, tuple[str, UpstreamSettings]] = {}
        for name, upstream in self._settings.upstreams.items():
            engine = self._upstream_engines(name, upstream)[0]
            await engine.start()
            try:
                for model in await engine.models():
                    if model.model_id != engine.model:
                        # Another model is another price, which nobody said.
                        change = {"model": model.model_id, "price": None}
                        found[model.model_id] = name, upstream.model_copy(update=change)
            except EngineError as error:
                log.warning("upstream_lists_nothing", upstream=name, reason=str(error))
            finally:
                await engine.close()
        return found

    # --- opening ---

    async def _model(self, name: str, model: ModelSettings, measured: Measured) -> MemberParts:
        replica_id = f"{name}-0"
        opened = await self._engines.open_model(name, model, replica_id)
        self._open.append(opened.engine)
        reading = await opened.engine.observe()
        replica = Replica(
            replica_id=replica_id, pool_id=LOCAL_POOL, capacity_requests=reading.capacity_requests
        )
        member = _on_terms(
            Member(
                member_id=name,
                replicas=(replica,),
                quality=self._quality(name, model, measured.quality.get(name)),
                weight=model.weight,
                relative_cost=measured.cost.get(name),
                capabilities=opened.engine.capabilities,
            ),
            model,
        )
        log.info("member_opened", member=name, engine=opened.kind, reason=opened.reason)
        return MemberParts(
            member=member,
            engines={replica_id: opened.engine},
            standby=model.standby,
            engine_kind=opened.kind,
            engine_reason=opened.reason,
        )

    def _quality(self, name: str, model: ModelSettings, of_folder: float | None) -> float | None:
        """What the operator says; else what was measured, for a variant with what its small weights lose."""
        if model.quality is not None or model.form is None or not quantised(model.form):
            return of_folder if model.quality is None else model.quality
        share = recall_quality(self._settings.cache_dir, model.path, model.form)
        if share is None:
            log.warning(
                "variant_of_unknown_quality",
                member=name,
                form=model.form,
                remedy=f"Measure it with 'loadwise compile {model.path}', or say quality.",
            )
        return None if share is None or of_folder is None else of_folder * share

    async def _upstream(
        self, name: str, upstream: UpstreamSettings, *, beside: str | None = None
    ) -> MemberParts:
        """The member of an upstream; `beside` is the one whose servers it shares, replica by replica."""
        engines = self._upstream_engines(name, upstream)
        self._open += engines
        await asyncio.gather(*(engine.start() for engine in engines))
        replicas = tuple(
            Replica(
                replica_id=engine.replica_id,
                # Replicas do not share a device unless the operator says so.
                pool_id=upstream.pool or replica_named(beside or name, place),
                capacity_requests=upstream.capacity_requests,
            )
            for place, engine in enumerate(engines)
        )
        member = _on_terms(
            Member(
                member_id=name,
                replicas=replicas,
                quality=upstream.quality,
                weight=upstream.weight,
                capabilities=common([engine.capabilities for engine in engines]),
            ),
            upstream,
        )
        return MemberParts(
            member=member,
            engines={engine.replica_id: engine for engine in engines},
            standby=upstream.standby,
            engine_kind="openai_http",
            engine_reason=f"configured upstream {upstream.url}",
        )

    def _upstream_engines(self, name: str, upstream: UpstreamSettings) -> tuple[OpenAIEngine, ...]:
        return self._engines.open_upstream(name, upstream, _upstream_key(name, upstream))


def _on_terms(member: Member, said: ModelSettings | UpstreamSettings) -> Member:
    """The member with what the operator said of its price, limits and tags."""
    limits = said.limits.limits()
    return replace(
        member,
        price=None if said.price is None else said.price.price(),
        limits=limits,
        tags=said.tags,
        capabilities=limited(member.capabilities, limits),
    )


def _named_members(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each setting that names a member, with the name."""
    for route, chosen in settings.routes.items():
        yield from ((f"routes.{route}.members", name) for name in chosen.members)
    if settings.optimization.default_member is not None:
        yield "optimization.default_member", settings.optimization.default_member


def _upstream_key(name: str, upstream: UpstreamSettings) -> str | None:
    if upstream.api_key_env is None:
        return None
    # Keys that come from files end in a line break.
    key = os.environ.get(upstream.api_key_env, "").strip()
    if not key:
        raise ConfigurationError(
            f"upstreams.{name}.api_key_env names {upstream.api_key_env}, which is not set.",
            field=f"upstreams.{name}.api_key_env",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"upstreams.{name}.api_key_env names {upstream.api_key_env}, whose value no header can carry: "
            "a key is one line of ASCII.",
            field=f"upstreams.{name}.api_key_env",
        )
    return key


def _folders(model_dir: Path | None) -> dict[str, Path]:
    """Model folders under `--model-dir` by name; links that lead out of it are left out."""
    if model_dir is None:
        return {}
    if not model_dir.is_dir():
        raise ConfigurationError(f"--model-dir {model_dir} is no folder.", field="model_dir")
    root = model_dir.resolve()
    return {
        path.name: path
        for path in sorted(root.iterdir())
        if path.is_dir() and (path / "config.json").is_file() and path.resolve().is_relative_to(root)
    }
