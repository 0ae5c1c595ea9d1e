"""The numbers of a request that a client may choose: their names, and which of them are whole.

A decision clamps them to a ceiling, never replaces them; those of `TunableParameter` it fills in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

TunableParameter = Literal["max_tokens", "temperature", "top_k"]
ChosenParameter = Literal[
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
    "n",
    "best_of",
    "thinking_token_budget",
    "thinking_budget",
    "max_thinking_tokens",
]
CHOSEN: Final[tuple[ChosenParameter, ...]] = get_args(ChosenParameter)
# Names of one limit; a ceiling of either binds all.
LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
THINKING_BUDGETS: Final = ("thinking_token_budget", "thinking_budget", "max_thinking_tokens")
INTEGERS: Final = frozenset(
    {*LIMITS, "min_tokens", "top_k", "n", "best_of", "seed", "logprobs", "top_logprobs"}
)
# Below it engines sample nothing: they take the most likely token.
GREEDY_BELOW: Final = 1e-5


def greedy(explicit: Mapping[str, int | float]) -> bool:
    """Whether these numbers ask for the most likely token each time; a temperature left out does not."""
    return explicit.get("temperature", 1.0) < GREEDY_BELOW
