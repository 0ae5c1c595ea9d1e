"""A closed loop of callers: how many tokens per second a server gives them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from loadwise.bench.client import Client, Planned, Target, body_of
from loadwise.bench.prompts import Prompts


@dataclass
class Workload:
    """Fixed lengths, and prompts that are never repeated."""

    model: str
    prompts: Prompts
    input_tokens: int
    output_tokens: int
    stream: bool = True
    made: int = 0

    def requests(self, count: int) -> list[Planned]:
        """Fresh requests."""
        first, self.made = self.made, self.made + count
        return [
            Planned(
                t_s=0.0,
                body=self._body(number),
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
            )
            for number in range(first, first + count)
        ]

    def _body(self, number: int) -> bytes:
        body = body_of(self.model, self.prompts.make(number, self.input_tokens), self.output_tokens)
        if self.stream:
            return body
        fields = {key: value for key, value in json.loads(body).items() if not key.startswith("stream")}
        return json.dumps(fields).encode()


async def streamed(client: Client, model: str, planned: Planned) -> int | None:
    """The tokens of an answer that was read as it came."""
    sample = await client.ask(model, planned, client.clock.monotonic_s())
    if sample.error is not None:
        raise SystemExit(f"{client.target.url}: {sample.error}.")
    return sample.completion_tokens


async def at_once(client: Client, planned: Planned) -> int | None:
    """The tokens of an answer that came whole."""
    async with client.session.post(client.target.url + client.target.path, data=planned.body) as response:
        response.raise_for_status()
        usage = (await response.json())["usage"]
    return int(usage["completion_tokens"])


def tokens_per_s(url: str, workload: Workload, requests: Sequence[Planned], concurrency: int) -> float:
    """Output tokens per second while `concurrency` callers ask one request after the other."""
    return asyncio.run(_closed_loop(url, workload, requests, concurrency))


async def _closed_loop(url: str, workload: Workload, requests: Sequence[Planned], concurrency: int) -> float:
    queue = iter(requests)
    tokens = 0

    async def caller(client: Client) -> None:
        nonlocal tokens
        for planned in queue:
            answer = (
                streamed(client, workload.model, planned) if workload.stream else at_once(client, planned)
            )
            made = await answer
            if made != planned.output_tokens:
                raise SystemExit(f"{url}: {made} tokens instead of {planned.output_tokens}.")
            tokens += made

    async with Client(Target(url)) as client:
        started_s = client.clock.monotonic_s()
        await asyncio.gather(*(caller(client) for _ in range(concurrency)))
        return tokens / (client.clock.monotonic_s() - started_s)
