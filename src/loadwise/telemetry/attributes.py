"""Names of span attributes: OpenTelemetry's GenAI semantic conventions (in development), and our own.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadwise.decision.facts import Endpoint

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
CHOICES: Final = "gen_ai.request.choice.count"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"
# A request's own parameters, by their field.
PARAMETERS: Final[Mapping[str, str]] = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
OPERATIONS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "chat",
    Endpoint.MESSAGES: "chat",
    Endpoint.RESPONSES: "chat",
    Endpoint.COMPLETION: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
}
# Of what has no name of its own in the conventions.
OTHER_OPERATION: Final = "generate_content"

REQUEST_ID: Final = "loadwise.request_id"
MEMBER: Final = "loadwise.member"
REPLICA: Final = "loadwise.replica"
STRATEGY: Final = "loadwise.strategy"
REASON: Final = "loadwise.reason"
PROPENSITY: Final = "loadwise.propensity"
LOAD_SCORE: Final = "loadwise.load_score"
CONFIG_VERSION: Final = "loadwise.config_version"
CHANGES: Final = "loadwise.changes"
CONTROL: Final = "loadwise.control"
ENDING: Final = "loadwise.ending"
FIRST_TOKEN: Final = "loadwise.time_to_first_token_s"  # noqa: S105 - a duration
ATTEMPT: Final = "loadwise.attempt"
ATTEMPT_ENDED: Final = "loadwise.attempt_ended"
