"""How long a prompt is: counted by the members' own tokenizers, bounded by its bytes otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from loadwise.decision.facts import Member, RequestFacts
from loadwise.errors import LoadwiseError
from loadwise.logs import get_logger
from loadwise.ports import Call, Engine, PromptSize

log = get_logger(__name__)
# Tokens that a chat template may add which the request's own bytes do not show.
TEMPLATE_TOKENS = 256
# Before answers told: a token is about four bytes, which weighs as much as so many of them.
BYTES_PER_TOKEN: Final = 4.0
TOKENS_ASSUMED: Final = 1000.0
# How much of what was learned each answer leaves.
KEPT: Final = 0.99
# A body up to this is counted in less time than a task for it would take.
SMALL_BYTES = 8 * 1024


async def size_of(call: Call, members: Sequence[Member], engines: Mapping[str, Engine]) -> PromptSize:
    """The prompt's tokens: exact where every tokenizer counts the same, and a bound never below it.

    Members with the same tokenizer fingerprint are asked once. A token is at least one byte.
    """
    asked: dict[str, Engine] = {}
    for member in members:
        fingerprint = member.capabilities.tokenizer_fingerprint or member.member_id
        engine = next((engines[r.replica_id] for r in member.replicas if r.replica_id in engines), None)
        if engine is not None:
            asked.setdefault(fingerprint, engine)
    if len(asked) == 1 or len(call.body) <= SMALL_BYTES:
        counts = [await _counted(engine, call) for engine in asked.values()]
    else:
        counts = list(await asyncio.gather(*(_counted(engine, call) for engine in asked.values())))
    known = [count for count in counts if count is not None]
    if known and len(known) == len(counts):
        same, most = len(set(known)) == 1, max(known)
        return PromptSize(exact=most if same else None, bound=most, expected=None if same else most)
    return PromptSize(exact=None, bound=max([len(call.body) + TEMPLATE_TOKENS, *known]))


class PromptLengths:
    """What bounds of prompts turned out to be in tokens, under each name that requests ask for.

    A bound counts bytes, several times the truth: judged by it, an idle server would seem too slow.
    """

    def __init__(self) -> None:
        # Decayed sums of tokens and of bounds.
        self._sums: dict[str, tuple[float, float]] = {}

    def expected(self, model: str, size: PromptSize) -> PromptSize:
        """The size with what it is likely to be, where nobody counted."""
        if size.exact is not None or size.expected is not None:
            return size
        tokens, bounds = self._of(model)
        # Below the bound, which is how `learn` knows that nobody counted.
        expected = min(size.bound - 1, round(size.bound * tokens / bounds))
        return PromptSize(exact=None, bound=size.bound, expected=max(1, expected))

    def learn(self, request: RequestFacts, prompt_tokens: int | None) -> None:
        """An answer told how long a prompt was that nobody had counted."""
        bound, expected = request.prompt_tokens_bound, request.prompt_tokens_expected
        if bound is None or expected is None or expected >= bound or not prompt_tokens:
            return
        tokens, bounds = self._of(request.model)
        self._sums[request.model] = KEPT * tokens + min(prompt_tokens, bound), KEPT * bounds + bound

    def _of(self, model: str) -> tuple[float, float]:
        return self._sums.get(model, (TOKENS_ASSUMED, TOKENS_ASSUMED * BYTES_PER_TOKEN))


async def _counted(engine: Engine, call: Call) -> int | None:
    try:
        return await engine.count_tokens(call)
    except LoadwiseError as error:
        log.warning("prompt_not_counted", reason=str(error))
        return None
