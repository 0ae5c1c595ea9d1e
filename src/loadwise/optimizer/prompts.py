"""How long a prompt is: counted by the members' own tokenizers, bounded by its bytes otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from loadwise.decision.facts import Member
from loadwise.errors import LoadwiseError
from loadwise.logs import get_logger
from loadwise.ports import Call, Engine, PromptSize

log = get_logger(__name__)
# Tokens that a chat template may add which the request's own bytes do not show.
TEMPLATE_TOKENS = 256
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
        return PromptSize(exact=known[0] if len(set(known)) == 1 else None, bound=max(known))
    return PromptSize(exact=None, bound=max([len(call.body) + TEMPLATE_TOKENS, *known]))


async def _counted(engine: Engine, call: Call) -> int | None:
    try:
        return await engine.count_tokens(call)
    except LoadwiseError as error:
        log.warning("prompt_not_counted", reason=str(error))
        return None
