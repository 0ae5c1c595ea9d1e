"""Tokens per second of engines that stand side by side: a closed loop each, in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

from loadwise.app.compiling.row import CONCURRENCIES
from loadwise.ports import Clock, SamplingParams, TokenEngine

PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64


class Course:
    """Prompts that no cache has seen, all of one length."""

    def __init__(self, clock: Clock, vocabulary: int, seed: int = 3) -> None:
        self._clock = clock
        self._vocabulary = vocabulary
        self._chance = Random(seed)

    async def interleaved(
        self, engines: Mapping[str, TokenEngine], runs: int
    ) -> dict[str, dict[int, list[float]]]:
        """Every engine's tokens per second at each concurrency; neighbours in time met one disturbance."""
        found: dict[str, dict[int, list[float]]] = {
            name: {count: [] for count in CONCURRENCIES} for name in engines
        }
        for engine in engines.values():
            await self._tokens_per_s(engine, max(CONCURRENCIES), 1)
        for run in range(runs):
            order = list(engines) if run % 2 == 0 else list(engines)[::-1]
            for count in CONCURRENCIES:
                for name in order:
                    rounds = 2 if count == 1 else 1
                    found[name][count].append(await self._tokens_per_s(engines[name], count, rounds))
        return found

    async def _tokens_per_s(self, engine: TokenEngine, concurrency: int, rounds: int) -> float:
        """Each of `concurrency` callers asks `rounds` times, one answer after the other."""
        started_s = self._clock.monotonic_s()

        async def caller() -> int:
            return sum([await self._answer(engine) for _ in range(rounds)])

        tokens = await asyncio.gather(*(caller() for _ in range(concurrency)))
        return sum(tokens) / (self._clock.monotonic_s() - started_s)

    async def _answer(self, engine: TokenEngine) -> int:
        prompt = [self._chance.randrange(self._vocabulary) for _ in range(PROMPT_TOKENS)]
        params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
        return sum([len(event.token_ids) async for event in engine.submit(prompt, params)])
