"""What a server can do, seen for itself: a few small requests whose effects cannot be missed.

A feature counts where its effect was seen (a tool call, two choices, an answer that obeys a schema), where
the server's own description lists its field, or where the server refuses a value of a wrong type for it: a
server that does not know a field ignores any value. What engines list and then refuse or pass over (a suffix,
an effort of reasoning) must be seen besides. Everything else is absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from loadwise.decision.facts import Endpoint, Feature
from loadwise.errors import EngineError

# A server is asked no more than this, and generates no more, each time it joins or restarts.
MOST_REQUESTS: Final = 12
MOST_TOKENS: Final = 200
FINGERPRINT_TEXT: Final = "def f(x):\n    return {'é': [x, 0x1F]}  # 東京 \U0001f600"
PROMPT: Final = "Say k."
_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
_TOOL: Final = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}
_SCHEMA: Final = {
    "type": "object",
    "properties": {"k": {"enum": ["zq"]}},
    "required": ["k"],
    "additionalProperties": False,
}
OBEYED: Final = '{"k":"zq"}'
# So much of it no server says that was not told to.
LEAST_OBEYED: Final = 4
# Fields whose effect no short answer shows: a value of the right type, and one of a wrong type.
_TYPED: Final[Mapping[str, tuple[Feature, Any, Any]]] = {
    "seed": (Feature.SEED, 1, "x"),
    "top_k": (Feature.TOP_K, 5, "x"),
    "min_p": (Feature.MIN_P, 0.1, "x"),
    "repetition_penalty": (Feature.REPETITION_PENALTY, 1.1, "x"),
    "frequency_penalty": (Feature.PENALTIES, 0.1, "x"),
    "ignore_eos": (Feature.IGNORE_EOS, True, "x"),
    "min_tokens": (Feature.MIN_TOKENS, 1, "x"),
    "stop_token_ids": (Feature.STOP_TOKEN_IDS, [1], "x"),
    "logit_bias": (Feature.LOGIT_BIAS, {"1": 0.5}, "x"),
    "reasoning_effort": (Feature.REASONING_EFFORT, "low", 7),
}
_COMPLETION_FIELDS: Final[Mapping[str, tuple[Feature, Any]]] = {
    "best_of": (Feature.BEST_OF, 2),
    "suffix": (Feature.SUFFIX, "b"),
}


class Reply(NamedTuple):
    """A server's answer: status (0: none came) and its body as JSON, {} where it is none."""

    status: int
    body: Mapping[str, Any]

    @property
    def choices(self) -> list[Mapping[str, Any]]:
        """The answer's choices, as far as they are objects."""
        found = self.body.get("choices")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None where it does not say."""
        found = self.choices[0].get("finish_reason") if self.choices else None
        return found if isinstance(found, str) else None

    @property
    def reasoned(self) -> bool:
        """Whether the answer shows that the model reasoned."""
        usage = self.body.get("usage")
        details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
        counted = isinstance(details, dict) and bool(details.get("reasoning_tokens"))
        return counted or any(bool(self.message.get(name)) for name in ("reasoning", "reasoning_content"))

    @property
    def message(self) -> Mapping[str, Any]:
        """The first choice's message."""
        found = self.choices[0].get("message") if self.choices else None
        return found if isinstance(found, dict) else {}

    def usage(self, name: str) -> int | None:
        """A count of tokens; None where the server does not say."""
        usage = self.body.get("usage")
        found = usage.get(name) if isinstance(usage, dict) else None
        return found if isinstance(found, int) else None


@dataclass(slots=True)
class Probed:
    """What was seen of a server, and what it cost."""

    features: set[Feature] = field(default_factory=set)
    # None where the server does not describe itself.
    endpoints: frozenset[Endpoint] | None = None
    tokenizer_fingerprint: str | None = None
    requests: int = 0
    generated_tokens: int = 0
    # Whether a completion was ever answered: before that nothing is known.
    answered: bool = False


# Method, path, JSON body (None for GET) -> status and body; `EngineError` when there is no answer.
Ask = Callable[[str, str, Any], Awaitable[tuple[int, bytes]]]


class Prober:
    """Asks one server, within `MOST_REQUESTS` and `MOST_TOKENS`."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask = ask
        self._model = model
        self.seen = Probed()
        # Tokens of the prompt that most requests send.
        self._plain_prompt: int | None = None
        # Whether any answer showed that the model reasons.
        self._reasoned = False

    async def probe(self) -> Probed:
        """Everything that can be told of the server; raises nothing, what fails is absent."""
        described = await self._description()
        await self._fingerprint()
        await self._tools()
        await self._structure()
        await self._choices()
        await self._fields(described.get(Endpoint.CHAT, frozenset()))
        await self._lengths()
        await self._completions(described.get(Endpoint.COMPLETION, frozenset()))
        await self._media()
        if "reasoning_effort" in described.get(Endpoint.CHAT, ()) and not self._reasoned:
            # Engines list the field whatever the model.
            self._saw(Feature.REASONING_EFFORT, False)
        return self.seen

    # --- what it says of itself ---

    async def _description(self) -> dict[Endpoint, frozenset[str]]:
        """The fields of each endpoint that its OpenAPI document lists."""
        document = (await self._get("/openapi.json")).body
        paths = document.get("paths")
        if not isinstance(paths, dict):
            return {}
        self.seen.endpoints = frozenset(endpoint for endpoint in Endpoint if endpoint.value in paths) or None
        return {
            endpoint: frozenset(_properties(document, paths[endpoint.value]))
            for endpoint in Endpoint
            if endpoint.value in paths
        }

    async def _fingerprint(self) -> None:
        """A digest of the ids that its tokenizer gives a text which tokenizers cut differently."""
        reply = await self._post("/tokenize", {"prompt": FINGERPRINT_TEXT, "content": FINGERPRINT_TEXT})
        tokens = reply.body.get("tokens")
        if isinstance(tokens, list) and tokens:
            digest = hashlib.sha256(msgspec.json.encode(tokens)).hexdigest()[:16]
            self.seen.tokenizer_fingerprint = f"ids:{digest}"

    # --- what it does ---

    async def _tools(self) -> None:
        # A call is a few dozen tokens where a tokenizer knows no markup.
        reply = await self._chat(64, tools=[_TOOL], tool_choice="required")
        if not reply.message.get("tool_calls"):
            return
        auto = await self._chat(8, tools=[_TOOL], tool_choice="auto")
        self._saw(Feature.TOOLS, auto.status == 200)

    async def _structure(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "k", "schema": _SCHEMA, "strict": True}}
        reply = await self._chat(32, response_format=form)
        said = "".join(str(reply.message.get("content")).split())
        # Grammars allow space anywhere, and small models fill an answer with it.
        cut = reply.finish_reason == "length" and len(said) >= LEAST_OBEYED and OBEYED.startswith(said)
        self._saw(Feature.RESPONSE_FORMAT, said == OBEYED or cut)

    async def _choices(self) -> None:
        # Of greedy sampling engines refuse two choices.
        reply = await self._chat(1, n=2, logprobs=True, top_logprobs=2, temperature=1)
        self._plain_prompt = reply.usage("prompt_tokens")
        self._saw(Feature.N, len(reply.choices) == 2)
        logprobs = (reply.choices[0].get("logprobs") or {}) if reply.choices else {}
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        first = content[0] if isinstance(content, list) and content else {}
        self._saw(Feature.LOGPROBS, isinstance(first, dict) and "logprob" in first)
        self._saw(Feature.TOP_LOGPROBS, isinstance(first, dict) and bool(first.get("top_logprobs")))

    async def _fields(self, described: frozenset[str]) -> None:
        """Fields that are listed, or refused with a wrong type and taken with the right one."""
        unlisted = [name for name in _TYPED if name not in described]
        refused = await self._refused({name: _TYPED[name][2] for name in unlisted})
        # A strict server refuses what it does not know as well.
        taken = refused - await self._refused({name: _TYPED[name][1] for name in unlisted if name in refused})
        for name, (feature, _, _) in _TYPED.items():
            self._saw(feature, name in described or name in taken)

    async def _refused(self, fields: Mapping[str, Any]) -> set[str]:
        """Those of the fields that the server's refusal names; all where it names none."""
        if not fields:
            return set()
        reply = await self._chat(1, **fields)
        if reply.status not in (400, 422):
            return set()
        text = msgspec.json.encode(reply.body).decode()
        return {name for name in fields if name in text} or set(fields)

    async def _lengths(self) -> None:
        """Exactly so many tokens, though the first may be no end."""
        if {Feature.MIN_TOKENS, Feature.IGNORE_EOS} <= self.seen.features:
            reply = await self._chat(6, min_tokens=6, ignore_eos=True)
            if self._plain_prompt is None:
                self._plain_prompt = reply.usage("prompt_tokens")
            if reply.usage("completion_tokens") != 6:
                self.seen.features -= {Feature.MIN_TOKENS, Feature.IGNORE_EOS}

    async def _completions(self, described: frozenset[str]) -> None:
        ids = await self._complete(prompt=[5, 6, 7])
        self._saw(Feature.TOKEN_IDS, ids.usage("prompt_tokens") == 3)
        echoed = await self._complete(prompt="loadwise", echo=True)
        text = echoed.choices[0].get("text") if echoed.choices else None
        self._saw(Feature.ECHO, isinstance(text, str) and text.startswith("loadwise"))
        listed = {name: asked for name, (_, asked) in _COMPLETION_FIELDS.items() if name in described}
        # A field may be listed only to be refused.
        taken = bool(listed) and (await self._complete(prompt="a", temperature=1, **listed)).status == 200
        for name, (feature, _) in _COMPLETION_FIELDS.items():
            self._saw(feature, taken and name in listed)

    async def _media(self) -> None:
        """An image that was read is tokens of the prompt; one that was passed over is none."""
        if self._plain_prompt is None:
            self._plain_prompt = (await self._chat(1)).usage("prompt_tokens")
        image = {"type": "image_url", "image_url": {"url": _PIXEL}}
        content = [image, {"type": "text", "text": PROMPT}]
        reply = await self._chat(1, messages=[{"role": "user", "content": content}])
        read, plain = reply.usage("prompt_tokens"), self._plain_prompt
        self._saw(Feature.MEDIA, read is not None and plain is not None and read > plain)

    # --- asking ---

    def _saw(self, feature: Feature, seen: bool) -> None:
        if seen:
            self.seen.features.add(feature)
        else:
            self.seen.features.discard(feature)

    async def _chat(self, tokens: int, **fields: Any) -> Reply:
        asked = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, **fields}
        body = {"model": self._model, "max_tokens": tokens, **asked}
        return await self._post(Endpoint.CHAT.value, body, tokens * int(fields.get("n", 1)))

    async def _complete(self, **fields: Any) -> Reply:
        body = {"model": self._model, "max_tokens": 1, "temperature": 0, **fields}
        return await self._post(Endpoint.COMPLETION.value, body, 1)

    async def _get(self, path: str) -> Reply:
        return await self._asked("GET", path, None)

    async def _post(self, path: str, body: Any, tokens: int = 0) -> Reply:
        if self.seen.generated_tokens + tokens > MOST_TOKENS:
            return Reply(0, {})
        self.seen.generated_tokens += tokens
        return await self._asked("POST", path, body)

    async def _asked(self, method: str, path: str, body: Any) -> Reply:
        if self.seen.requests >= MOST_REQUESTS:
            return Reply(0, {})
        self.seen.requests += 1
        try:
            status, raw = await self._ask(method, path, body)
            decoded = msgspec.json.decode(raw) if raw else {}
        except (EngineError, msgspec.MsgspecError, RecursionError):
            return Reply(0, {})
        self.seen.answered |= status == 200 and method == "POST" and "choices" in decoded
        reply = Reply(status, decoded if isinstance(decoded, dict) else {})
        self._reasoned |= reply.reasoned
        return reply


def _properties(document: Mapping[str, Any], path: Any) -> Iterable[str]:
    """The names of the fields of a path's JSON body; none where the document is of another form."""
    schema = _within(path, "post", "requestBody", "content", "application/json", "schema")
    name = str(schema.get("$ref", "")).rsplit("/", 1)[-1]
    found = _within(document, "components", "schemas", name) if name else schema
    return _within(found, "properties")


def _within(value: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
