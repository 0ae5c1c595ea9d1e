"""One request while it is answered: its sequences, their text, and what the gateway may know of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from loadwise.engines.rendering.choices import Choice, Piece
from loadwise.engines.rendering.frames import DONE, Frames, Usage
from loadwise.engines.rendering.merge import merged
from loadwise.engines.rendering.plan import Plan
from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import EngineError
from loadwise.ports import Clock, Progress, SamplingParams, TokenEngine, TokenEvent, TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan with its prompts as ids."""

    plan: Plan
    prompt_ids: tuple[tuple[int, ...], ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together."""
        return sum(len(ids) for ids in self.prompt_ids)

    @property
    def sequences(self) -> int:
        """Sequences to generate for all prompts together."""
        return len(self.prompt_ids) * self.plan.sequences_per_prompt


class Job:
    """Submits a request's sequences and gives them back as frames or as one body."""

    def __init__(self, prepared: Prepared, frames: Frames, tokenizer: Tokenizer, clock: Clock) -> None:
        self.progress = Progress(prompt_tokens=prepared.prompt_tokens, output_tokens=0)
        self._prepared = prepared
        self._plan = prepared.plan
        self._frames = frames
        self._tokenizer = tokenizer
        self._clock = clock
        self._streams: list[TokenStream] = []
        self._choices: list[Choice] = []

    def submit(self, engine: TokenEngine, context_tokens: int | None) -> None:
        """Queues every sequence, or none: a refusal takes back those before it."""
        try:
            for ids in self._prepared.prompt_ids:
                sampling = _limited(self._plan, len(ids), context_tokens)
                for number in range(self._plan.sequences_per_prompt):
                    self._choices.append(Choice(self._plan, self._tokenizer))
                    if sampling.max_tokens:
                        seed = None if sampling.seed is None else sampling.seed + number
                        self._streams.append(engine.submit(ids, replace(sampling, seed=seed)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Frees every place that the request still holds."""
        for stream in self._streams:
            stream.cancel()

    async def sse(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events from the first token to `[DONE]`; closing it frees the places."""
        plan, frames = self._plan, self._frames
        if plan.include_usage:
            frames.show_usage()
        try:
            started = b"".join(self._opening(index) for index in range(len(self._choices)))
            if not self._streams:
                yield started
            async with aclosing(self._pieces()) as pieces:
                async for index, piece in pieces:
                    if piece.text or piece.finish_reason or piece.logprobs or started:
                        usage = self.usage() if plan.continuous_usage else None
                        yield started + frames.piece(index, piece, usage)
                        started = b""
            yield (frames.usage(self.usage()) if plan.include_usage else b"") + DONE
        finally:
            self.cancel()

    async def whole(self) -> bytes:
        """The body of the finished answer; cancelling the wait frees the places."""
        plan = self._plan
        pieces = [Piece(self._echoed(index)) for index in range(len(self._choices))]
        parts: list[list[str]] = [[piece.text] for piece in pieces]
        try:
            async with aclosing(self._pieces()) as coming:
                async for index, piece in coming:
                    parts[index].append(piece.text)
                    pieces[index].logprobs.extend(piece.logprobs)
                    pieces[index].finish_reason = piece.finish_reason
        finally:
            self.cancel()
        for piece, texts in zip(pieces, parts, strict=True):
            piece.text = "".join(texts)
            piece.finish_reason = piece.finish_reason or "length"
        chosen = [pieces[index] for index in self._best()]
        wants = plan.top_logprobs is not None
        choices = [self._frames.choice(place, piece, wants) for place, piece in enumerate(chosen)]
        return self._frames.whole(choices, self.usage())

    def usage(self) -> Usage:
        """Tokens so far, those of sequences that are not returned included."""
        return Usage(
            prompt_tokens=self._prepared.prompt_tokens, completion_tokens=self.progress.output_tokens or 0
        )

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        unfinished = len(self._streams)
        if not unfinished:
            return
        choices, progress = self._choices, self.progress
        async with aclosing(merged(self._streams)) as events:
            async for index, event in events:
                choice = choices[index]
                if choice.finish_reason is not None:
                    continue
                self._note(event)
                piece = choice.add(event)
                if piece.finish_reason is not None:
                    progress.finish_reason = piece.finish_reason
                    unfinished -= 1
                    if event.finish_reason is None:
                        self._streams[index].cancel()
                yield index, piece
                if not unfinished:
                    return
        raise EngineError("The engine ended a sequence without a finish reason.")

    def _note(self, event: TokenEvent) -> None:
        progress = self.progress
        progress.output_tokens = (progress.output_tokens or 0) + len(event.token_ids)
        if progress.first_token_s is None and event.token_ids:
            progress.first_token_s = self._clock.monotonic_s()
            progress.queued_s = event.queued_s

    def _opening(self, index: int) -> bytes:
        """What a choice says before its first token: its role, the echoed prompt, or an empty end."""
        ended = None if self._streams else "length"
        echoed = self._echoed(index)
        opening = self._frames.role(index)
        if echoed or ended:
            opening += self._frames.piece(index, Piece(echoed, ended))
        return opening

    def _echoed(self, index: int) -> str:
        if not self._plan.echo:
            return ""
        prompt = self._plan.prompts[index // self._plan.sequences_per_prompt]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _best(self) -> Sequence[int]:
        """Indices of the sequences to return: per prompt the `n` of highest mean logprob, best first."""
        each, n = self._plan.sequences_per_prompt, self._plan.n
        groups = [range(first, first + each) for first in range(0, len(self._choices), each)]
        if each == n:
            return [index for group in groups for index in group]
        return [
            index for group in groups for index in sorted(group, key=self._mean_logprob, reverse=True)[:n]
        ]

    def _mean_logprob(self, index: int) -> float:
        choice = self._choices[index]
        return choice.sum_logprobs / max(choice.tokens, 1)


def _limited(plan: Plan, prompt_tokens: int, context_tokens: int | None) -> SamplingParams:
    """The plan's sampling with token limits that fit the context left beside this prompt."""
    left = 2**31 - 1 if context_tokens is None else context_tokens - prompt_tokens
    limit = left if plan.max_tokens is None else min(plan.max_tokens, left)
    return replace(plan.sampling, max_tokens=limit, min_tokens=min(plan.sampling.min_tokens, limit))
