"""What a server lists under `/v1/models`, and how it says that it does not serve a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

# How servers name the error besides its message.
_MISSING = ("model_not_found", "NotFoundError", "not_found_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamModel:
    """A model that an upstream lists."""

    model_id: str
    context_tokens: int | None = None
    # What is behind the name; several names may be one model's.
    root: str | None = None
    # The model that it is an adapter of.
    parent: str | None = None
    # Whether the server tells adapters from models at all.
    tells_parent: bool = False


class _Listed(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    # llama.cpp says it here.
    meta: dict[str, Any] | None = None
    # vLLM: what is behind the name, and of an adapter its model's first name.
    root: str | None = None
    parent: str | UnsetType | None = UNSET

    def context(self) -> int | None:
        """The context in tokens, where the server says it."""
        meta = self.meta or {}
        # What a slot holds; older builds tell only what the model was trained with.
        known = self.max_model_len or meta.get("n_ctx") or meta.get("n_ctx_train")
        return known if isinstance(known, int) and known > 0 else None


class _ModelList(msgspec.Struct):
    data: list[_Listed] = []


def listed(raw: bytes) -> list[UpstreamModel]:
    """The models of a listing; `msgspec.MsgspecError` where it is none."""
    return [
        UpstreamModel(
            model_id=item.id,
            context_tokens=item.context(),
            root=item.root,
            parent=item.parent or None,
            tells_parent=item.parent is not UNSET,
        )
        for item in msgspec.json.decode(raw, type=_ModelList).data
    ]


def context_of(model: str | None, models: Sequence[UpstreamModel]) -> int | None:
    """The context of a model in tokens, an adapter's being its model's; None where it is not told."""
    ours = next((each for each in models if each.model_id == model), None)
    if ours is None or ours.context_tokens is not None or ours.parent in (None, model):
        return None if ours is None else ours.context_tokens
    return next((each.context_tokens for each in models if each.model_id == ours.parent), None)


def adapters_of(model: str | None, models: Sequence[UpstreamModel]) -> frozenset[str] | None:
    """The adapters of a model by name; None where the server does not tell them from models."""
    if not any(each.tells_parent for each in models):
        return None
    root = next((each.root for each in models if each.model_id == model), None)
    names = {each.model_id for each in models if each.root == root} if root is not None else {model}
    return frozenset(each.model_id for each in models if each.parent is not None and each.parent in names)


def misses(raw: bytes, model: str) -> bool:
    """Whether the body of a 404 says that the server does not serve the model, not that a path is missing."""
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    error = said.get("error", said) if isinstance(said, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    named = model in str(error.get("message"))
    return named and (error.get("param") == "model" or _told(error.get("type"), error.get("code")))


def _told(*kinds: Any) -> bool:
    return any(kind in _MISSING for kind in kinds if isinstance(kind, str))
