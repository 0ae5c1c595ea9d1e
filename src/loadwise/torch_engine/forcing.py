"""A step reads texts token by token, as when it serves, and tells what it predicts after each.

Letters: B texts, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from loadwise.torch_engine.agreement import Agreement, agreement
from loadwise.torch_engine.cache import KeyValueCache, columns_for
from loadwise.torch_engine.loading import LoadedModel
from loadwise.torch_engine.step import attention_mask
from loadwise.torch_engine.texts import Texts

TEXTS, TOKENS = 16, 72
Step = Callable[..., torch.Tensor]
# A callable that computes, made to give way to requests after each of its calls.
Paced = Callable[[Callable[..., Any]], Callable[..., Any]]
Choose = Callable[[int, torch.Tensor], torch.Tensor]


class Forcing:
    """Held-out texts for a model, and the original's predictions for them; each is computed once.

    Without texts, the model writes its own, by chance from its own predictions. `loaded` and `original` are
    the model in fp32; a step over a cache of other numbers is judged as `served`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        original: Step,
        rows: int,
        *,
        prepare: Callable[[], None] = lambda: None,
        texts: Texts | None = None,
        seed: int = 11,
    ) -> None:
        """`ConfigurationError` when the texts are too few, or not this model's."""
        self._loaded = loaded
        self._tokens = min(TOKENS, loaded.context_tokens)
        self._batch = max(2, min(TEXTS, rows))
        self._source = "model" if texts is None else texts.source
        self._given: torch.Tensor | None = None  # [B, T]
        if texts is not None:
            self._given = torch.tensor(texts.rows(self._batch, self._tokens, loaded.vocabulary))
            self._batch = len(self._given)
        # Let go of once it has predicted: where the model is served in other numbers it is a second copy.
        self._original: Step | None = original
        # Called on the thread that computes, for what torch keeps per thread.
        self._prepare = prepare
        self._rows = rows
        self._seed = seed
        self._texts: torch.Tensor | None = None  # [B, T]
        self._expected: torch.Tensor | None = None  # [B, T, V]

    @property
    def predictions(self) -> torch.Tensor:
        """The original's, [B, T, V]."""
        return self._both()[1]

    @property
    def texts(self) -> torch.Tensor:
        """Token ids [B, T]."""
        return self._both()[0]

    def judge(
        self,
        step: Step,
        precision: str,
        paced: Paced = lambda call: call,
        served: LoadedModel | None = None,
    ) -> Agreement:
        """How far `step` agrees with the original on these texts; `paced` wraps all that is computed."""
        texts = self._both(paced)[0]
        actual = self._read(paced(step), lambda place, _: texts[:, place], served or self._loaded)
        return cast("Agreement", paced(self.compare)(actual, precision))

    def compare(self, actual: torch.Tensor, precision: str) -> Agreement:
        """How far predictions [B, T, V] that were made elsewhere agree with the original's."""
        texts, expected = self._both()
        # The last prediction of a text has nothing to be held against.
        given, found = expected[:, :-1].flatten(0, 1), actual[:, :-1].flatten(0, 1)
        judged = agreement(given, found, texts[:, 1:].flatten(), precision)
        return replace(judged, texts=self._source)

    def _both(self, paced: Paced = lambda call: call) -> tuple[torch.Tensor, torch.Tensor]:
        if self._texts is None or self._expected is None:
            given, original = self._given, paced(cast("Step", self._original))
            self._texts, self._expected = (
                self._written(original) if given is None else self._read_out(given, original)
            )
            self._original = None
            self._loaded = replace(self._loaded, model=torch.nn.Module())
        return self._texts, self._expected

    def _read_out(self, given: torch.Tensor, original: Step) -> tuple[torch.Tensor, torch.Tensor]:
        return given, self._read(original, lambda place, _: given[:, place], self._loaded)

    def _written(self, original: Step) -> tuple[torch.Tensor, torch.Tensor]:
        chance = torch.Generator().manual_seed(self._seed)
        first = torch.randint(self._loaded.vocabulary, (self._batch,), generator=chance)
        written: list[torch.Tensor] = []

        def choose(place: int, logits: torch.Tensor) -> torch.Tensor:
            if place == 0:
                written.append(first)
            else:
                shares = logits.float().softmax(-1).cpu()
                written.append(torch.multinomial(shares, 1, generator=chance)[:, 0])
            return written[-1]

        logits = self._read(original, choose, self._loaded)
        return torch.stack(written, 1), logits

    def _read(self, step: Step, choose: Choose, served: LoadedModel) -> torch.Tensor:
        """Predictions [B, T, V] after each token; `choose` gives the tokens [B] of a place."""
        threads = torch.get_num_threads()
        self._prepare()
        try:
            return self._predicted(step, choose, served)
        finally:
            # Whoever called may compile for as many threads as it had.
            torch.set_num_threads(threads)

    def _predicted(self, step: Step, choose: Choose, loaded: LoadedModel) -> torch.Tensor:
        cache = KeyValueCache(loaded.shape, self._rows, loaded.context_tokens, loaded.device, thin=True)
        logits = torch.zeros(self._batch, loaded.vocabulary)
        found = []
        with torch.no_grad():
            for place in range(self._tokens):
                # Compiled steps take contiguous tensors only, and do not look whether they are.
                chosen = choose(place, logits).to(loaded.device).contiguous()
                columns = torch.full((self._batch, 1), place + 1, device=loaded.device)
                mask = attention_mask(columns, columns_for(place + 1), loaded.shape.dtype)
                logits = step(chosen.unsqueeze(1), columns - 1, mask, cache.keys, cache.values, columns)
                found.append(logits.float().cpu())
        return torch.stack(found, 1)
