"""One answer in the making: token events in, text and logprobs out, until it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadwise.engines.rendering.plan import Plan
from loadwise.engines.rendering.stops import StopScanner
from loadwise.engines.tokenizer import Tokenizer
from loadwise.ports import TokenEvent


@dataclass(slots=True)
class TokenLogprob:
    """One token with what it was worth; `offset` is where its text begins in the answer."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(slots=True)
class Piece:
    """What one event adds to an answer."""

    text: str
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Choice:
    """Accumulates one sequence; after its end `finish_reason` is set and nothing more comes."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._text_bytes = tokenizer.text_bytes
        self._stops = StopScanner(plan.stops)
        self._min_tokens = plan.sampling.min_tokens
        self._wants_logprobs = plan.top_logprobs is not None
        self._pending: list[TokenLogprob] = []
        self._decoded_chars = 0
        self.emitted_chars = 0
        self.tokens = 0
        self.sum_logprobs = 0.0
        self.finish_reason: str | None = None

    def add(self, event: TokenEvent) -> Piece:
        """What may be sent now; a stop string ends the answer with reason "stop"."""
        self.tokens += len(event.token_ids)
        raw = self._detokenizer.feed(event.token_ids) if event.token_ids else ""
        if event.logprobs is not None:
            self._note_logprobs(event)
        reason = event.finish_reason
        if reason is not None:
            raw += self._detokenizer.flush()
        text, stopped = self._stops.feed(raw, active=self.tokens >= self._min_tokens)
        if stopped:
            reason = "stop"
        elif reason is not None:
            text += self._stops.flush()
        self.emitted_chars += len(text)
        self._decoded_chars += len(raw)
        self.finish_reason = reason
        return Piece(text, reason, self._released() if self._pending else [])

    def _note_logprobs(self, event: TokenEvent) -> None:
        chosen = event.logprobs or ()
        self.sum_logprobs += sum(chosen)
        if not self._wants_logprobs:
            return
        tops = event.top_logprobs or ((),) * len(chosen)
        offset = self._decoded_chars
        for token_id, logprob, top in zip(event.token_ids, chosen, tops, strict=True):
            self._pending.append(TokenLogprob(token_id, logprob, top, offset))
            offset += len(self._text_bytes(token_id).decode("utf-8", "ignore"))

    def _released(self) -> list[TokenLogprob]:
        """Logprobs of tokens whose text begins within what was sent; at the end, no others follow."""
        if self.finish_reason is None:
            count = sum(1 for entry in self._pending if entry.offset < self.emitted_chars)
        else:
            # Tokens without text at the very end belong to the answer too, unless a stop string cut it.
            limit = self.emitted_chars + (1 if self.emitted_chars == self._decoded_chars else 0)
            count = sum(1 for entry in self._pending if entry.offset < limit)
        released, self._pending = self._pending[:count], self._pending[count:]
        return released
