"""A prompt's length among members that count differently, or not at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from loadwise.decision.facts import Endpoint, Member, Replica, RequestFacts
from loadwise.optimizer.prompts import SMALL_BYTES, TEMPLATE_TOKENS, PromptLengths, size_of
from loadwise.ports import Call, Dispatch, PromptSize


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
    assert await measured(size_bytes, 7, 9) == PromptSize(exact=None, bound=9, expected=9)
    assert await measured(size_bytes, 7, None) == PromptSize(exact=None, bound=size_bytes + TEMPLATE_TOKENS)


def uncounted(lengths: PromptLengths, bound: int, model: str = "auto") -> RequestFacts:
    size = lengths.expected(model, PromptSize(exact=None, bound=bound))
    return RequestFacts(
        request_id="r", model=model, prompt_tokens_bound=bound, prompt_tokens_expected=size.expected
    )


def test_a_prompt_that_nobody_counted_is_expected_to_be_what_others_turned_out_to_be() -> None:
    lengths = PromptLengths()
    assert uncounted(lengths, 4000).prompt_length == 1000
    for _ in range(300):
        lengths.learn(uncounted(lengths, 700), 70)
    assert uncounted(lengths, 4000).prompt_length == pytest.approx(400, rel=0.05)
    assert uncounted(lengths, 4000, model="other").prompt_length == 1000


def test_bounds_that_seemed_true_for_a_while_are_learned_again() -> None:
    lengths = PromptLengths()
    for _ in range(2000):
        lengths.learn(uncounted(lengths, 700), 10_000)
    for _ in range(500):
        lengths.learn(uncounted(lengths, 700), 70)
    assert uncounted(lengths, 4000).prompt_length == pytest.approx(400, rel=0.1)


def test_counted_prompts_are_what_was_counted_and_teach_nothing() -> None:
    lengths = PromptLengths()
    for size in (PromptSize(exact=7, bound=7), PromptSize(exact=None, bound=9, expected=9)):
        assert lengths.expected("auto", size) == size
    lengths.learn(RequestFacts(request_id="r", prompt_tokens=5, prompt_tokens_bound=5), 5)
    lengths.learn(RequestFacts(request_id="r", prompt_tokens_bound=9, prompt_tokens_expected=9), 9)
    lengths.learn(uncounted(lengths, 4000), None)
    assert uncounted(lengths, 4000).prompt_length == 1000


async def test_an_idle_server_is_not_too_slow_for_a_prompt_of_many_bytes(make: Any) -> None:
    server = make(embedded=False)
    server.director.running = True
    await server.turn()
    for engine in server.engines.values():
        engine.count_tokens = nobody_counts
    call = Call(endpoint=Endpoint.CHAT, body=b"x" * 700, request_id="r")

    async def asked(number: int) -> Dispatch:
        size = await server.director.measure("auto", call)
        return server.dispatch(
            number,
            prompt_tokens=size.exact,
            prompt_tokens_bound=size.bound,
            prompt_tokens_expected=size.expected,
        )

    # A fifth of a second for 100 tokens; were each byte one, more than a second and the objective.
    members: Counter[str] = Counter()
    for number in range(90):
        dispatch = await asked(number)
        members[dispatch.member_id] += 1
        first_s = 0.2 if dispatch.member_id == "accurate" else 0.03
        server.end(dispatch, prompt_tokens=100, time_to_first_token_s=first_s, total_s=0.6)
        await server.turn(1.0)
    assert members["accurate"] > 80


async def nobody_counts(call: Call) -> None:
    """A server without a tokenizer."""
