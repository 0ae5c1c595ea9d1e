"""A prompt's length among members that count differently, or not at all."""

import pytest

from loadwise.decision.facts import Endpoint, Member, Replica
from loadwise.optimizer.prompts import SMALL_BYTES, TEMPLATE_TOKENS, size_of
from loadwise.ports import Call, PromptSize


class Counting:
    """An engine whose tokenizer says always the same."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens
        self.asked = 0

    async def count_tokens(self, call: Call) -> int | None:
        self.asked += 1
        return self.tokens


async def measured(size_bytes: int, *tokens: int | None) -> PromptSize:
    engines = {f"r{at}": Counting(count) for at, count in enumerate(tokens)}
    members = [Member(member_id=name, replicas=(Replica(replica_id=name, pool_id="p"),)) for name in engines]
    call = Call(endpoint=Endpoint.CHAT, body=b"x" * size_bytes, request_id="r")
    size = await size_of(call, members, engines)  # type: ignore[arg-type]
    assert [engine.asked for engine in engines.values()] == [1] * len(tokens)
    return size


@pytest.mark.parametrize("size_bytes", [100, SMALL_BYTES + 1])
async def test_every_tokenizer_is_heard_whatever_the_size(size_bytes: int) -> None:
    assert await measured(size_bytes, 7, 7) == PromptSize(exact=7, bound=7)
    assert await measured(size_bytes, 7, 9) == PromptSize(exact=None, bound=9)
    assert await measured(size_bytes, 7, None) == PromptSize(exact=None, bound=size_bytes + TEMPLATE_TOKENS)
