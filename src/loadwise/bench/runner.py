"""Runs against one server: knows its members, makes fresh prompts, shows progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from loadwise.bench.client import Client, Planned, Sample, body_of
from loadwise.bench.plan import plan
from loadwise.bench.prompts import Prompts, TextPrompts, WordPrompts
from loadwise.bench.summary import Qualities, Summary, summarize, timeline
from loadwise.decision.facts import Objectives
from loadwise.errors import EngineError
from loadwise.simulation.workloads import Arrival

# Told the model, how many of its requests have ended, and how many there are.
OnProgress = Callable[[str, int, int], None]
CALIBRATION_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One replay: its figures, and the samples that they come from."""

    summary: Summary
    samples: Sequence[Sample]
    objectives: Objectives

    def timeline(self) -> list[dict[str, Any]]:
        """The run in at most 60 equal parts of time."""
        return timeline(self.samples, self.summary.duration_s, self.objectives)


@dataclass(slots=True)
class Runner:
    """Replays arrivals against a server; every run gets prompts that no prefix cache has seen."""

    client: Client
    prompts: Prompts
    objectives: Objectives = field(default_factory=Objectives)
    on_progress: OnProgress = lambda _model, _ended, _all: None
    qualities: Qualities = field(default_factory=dict)
    _made: int = 0

    async def run(self, model: str, arrivals: Sequence[Arrival], duration_s: float) -> Run:
        """One replay of the arrivals against `model`; returns when the last answer ended."""
        requests = plan(model, arrivals, self.prompts, first=self._made, chat=self.client.target.chat)
        self._made += len(requests)
        ended = 0

        def count(_sample: Sample) -> None:
            nonlocal ended
            ended += 1
            self.on_progress(model, ended, len(requests))

        self.on_progress(model, 0, len(requests))
        samples = await self.client.replay(model, requests, count)
        summary = summarize(model, samples, duration_s, self.objectives, self.qualities)
        return Run(summary=summary, samples=samples, objectives=self.objectives)

    async def warm_up(self, models: Sequence[str], tokens: int = 16) -> None:
        """Each model has answered once; `EngineError` with the server's reason when one cannot."""
        for model in models:
            arrival = Arrival(0.0, tokens, tokens)
            requests = plan(model, [arrival], self.prompts, first=self._made, chat=self.client.target.chat)
            self._made += 1
            [sample] = await self.client.replay(model, requests)
            if sample.error is not None:
                raise EngineError(f"{self.client.target.url} cannot answer for {model!r}: {sample.error}")


async def server_models(client: Client) -> list[str]:
    """The models that the server lists, in its order."""
    listed = await client.get("/v1/models") or {}
    return [str(model["id"]) for model in listed.get("data", []) if "id" in model]


async def server_qualities(client: Client) -> dict[str, float | None]:
    """Active members and their qualities in 0..1 (None: unknown); empty for a server that is not loadwise."""
    view = await client.get("/v1/optimization/ensemble") or {}
    return {str(member["model_id"]): member.get("quality") for member in view.get("models", [])}


async def choose_prompts(client: Client, model: str, tokenizer: Path | None, seed: int) -> Prompts:
    """Text measured with a tokenizer: the one given, or the demo family's where the server agrees with it.

    Else plain words, measured by one request to the server.
    """
    if tokenizer is not None:
        return TextPrompts.from_path(tokenizer, seed)
    demo = demo_tokenizer()
    if demo is not None:
        prompts = TextPrompts.from_path(demo, seed)
        if await _count(client, model, prompts.make(0, CALIBRATION_TOKENS)) == CALIBRATION_TOKENS:
            return prompts
    counted = await _count(client, model, WordPrompts(1.0, seed).make(0, CALIBRATION_TOKENS))
    if not counted:
        raise EngineError(f"{client.target.url} does not report its prompt tokens; give --tokenizer.")
    return WordPrompts(counted / CALIBRATION_TOKENS, seed)


def demo_tokenizer() -> Path | None:
    """The tokenizer of the models that ship with loadwise, where they are installed."""
    try:
        from loadwise_models import family
    except ImportError:
        return None
    files = [folder / "tokenizer.json" for folder in family().values()]
    return next((file for file in files if file.is_file()), None)


async def _count(client: Client, model: str, prompt: str | list[int]) -> int | None:
    body = body_of(model, prompt, 1, chat=client.target.chat)
    planned = Planned(t_s=0.0, body=body, input_tokens=CALIBRATION_TOKENS, output_tokens=1)
    [sample] = await client.replay(model, [planned])
    if sample.error is not None:
        raise EngineError(f"{client.target.url} cannot answer for {model!r}: {sample.error}")
    return sample.prompt_tokens


def samples_csv(samples: Sequence[Sample]) -> str:
    """One line per request with every measured value; an empty field is a value that is not known."""
    names = tuple(column.name for column in fields(Sample))
    lines = [",".join(names)]
    for sample in samples:
        values = (getattr(sample, name) for name in names)
        lines.append(",".join(_field(value) for value in values))
    return "\n".join(lines) + "\n"


def _field(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    # Text from the server must not become a formula or another column of a spreadsheet.
    return (
        text if not isinstance(value, str) else text.replace(",", ";").replace("\n", " ").lstrip("=+-@\t\r")
    )
