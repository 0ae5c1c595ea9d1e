"""What a server can do, seen for itself: a few small requests whose effects cannot be missed.

A feature counts where its effect was seen (a tool call, two choices, an answer that obeys a schema), where
the server's own description lists its field, or where the server refuses a value of a wrong type for it: a
server that does not know a field ignores any value. What engines list and then refuse or pass over (a suffix,
a budget or an effort of thinking, a priority) must be seen besides. Everything else is absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from loadwise.decision.facts import Endpoint, Feature
from loadwise.decision.numbers import THINKING_BUDGETS
from loadwise.decision.parameters import THINKING
from loadwise.engines import probe_questions as ask
from loadwise.engines.probe_replies import Reply, reply_of
from loadwise.errors import EngineError

# A server is asked no more than this, and generates no more, each time it joins or restarts.
MOST_REQUESTS: Final = 12
MOST_TOKENS: Final = 200


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

    def __init__(self, send: Ask, model: str) -> None:
        self._send = send
        self._model = model
        self.seen = Probed()
        # Fields of chat completions, and paths, that it lists.
        self._listed: frozenset[str] = frozenset()
        self._paths: frozenset[str] = frozenset()
        # Tokens of the prompt that most requests send.
        self._plain_prompt: int | None = None
        # Whether any answer showed that the model reasons; budgets of that which were refused or passed over.
        self._reasoned = False
        self._refused_budgets: set[str] = set()
        # Whether exact lengths were seen to hold.
        self._exact: bool | None = None

    async def probe(self) -> Probed:
        """Everything that can be told of the server; raises nothing, what fails is absent."""
        described = await self._description()
        self._listed = described.get(Endpoint.CHAT, frozenset())
        await self._priority()
        await self._fingerprint()
        await self._tools()
        await self._structure()
        await self._choices()
        await self._fields()
        await self._media()
        # Last, for it is asked for least: a server that refuses much leaves no request for it.
        await self._completions(described.get(Endpoint.COMPLETION, frozenset()))
        if not self._reasoned:
            # Engines list these fields whatever the model.
            self.seen.features -= THINKING
        return self.seen

    # --- what it says of itself ---

    async def _description(self) -> dict[Endpoint, frozenset[str]]:
        """The fields of each endpoint that its OpenAPI document lists."""
        document = (await self._get("/openapi.json")).body
        paths = document.get("paths")
        if not isinstance(paths, dict):
            return {}
        self._paths = frozenset(paths)
        self.seen.endpoints = frozenset(endpoint for endpoint in Endpoint if endpoint.value in paths) or None
        return {
            endpoint: frozenset(_properties(document, paths[endpoint.value]))
            for endpoint in Endpoint
            if endpoint.value in paths
        }

    async def _fingerprint(self) -> None:
        """A digest of the ids that its tokenizer gives a text which tokenizers cut differently."""
        reply = await self._post(
            "/tokenize", {"prompt": ask.FINGERPRINT_TEXT, "content": ask.FINGERPRINT_TEXT}
        )
        tokens = reply.body.get("tokens")
        if isinstance(tokens, list) and tokens:
            digest = hashlib.sha256(msgspec.json.encode(tokens)).hexdigest()[:16]
            self.seen.tokenizer_fingerprint = f"ids:{digest}"

    async def _priority(self) -> None:
        """Engines take a priority whatever their scheduling: only their own settings tell."""
        path = next((path for path in ask.SETTINGS if path in self._paths), None)
        if path is not None:
            told = (await self._get(f"{path}?config_format=json")).body
            configured = [_within(told, name, "scheduler_config").get("policy") for name in told]
            self._saw(
                Feature.PRIORITY, told.get("enable_priority_scheduling") is True or "priority" in configured
            )

    # --- what it does ---

    async def _tools(self) -> None:
        """A call that is required is seen, in a stream at best; then calling may be left to the model."""
        # A call is a few dozen tokens where a tokenizer knows no markup.
        reply = await self._briefly(64, stream=True, tools=[ask.TOOL], tool_choice="required")
        self._saw(Feature.STREAMED_TOOLS, reply.called and reply.streamed)
        if not reply.called and (reply.status == 200 or "stream" in reply.text):
            # Some have no tools in streams alone.
            reply = await self._briefly(64, tools=[ask.TOOL], tool_choice="required")
        self._saw(Feature.TOOL_CHOICE, reply.called)
        # Who makes a model call tools takes the calls back, and their results.
        self._saw(Feature.TOOL_TURNS, reply.called)
        if reply.called:
            auto = await self._chat(8, tools=[ask.TOOL], tool_choice="auto")
            self._saw(Feature.TOOLS, auto.status == 200)

    async def _structure(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "k", "schema": ask.SCHEMA, "strict": True}}
        reply = await self._briefly(32, response_format=form)
        said = "".join(str(reply.message.get("content")).split())
        # Grammars allow space anywhere, and small models fill an answer with it.
        cut = reply.cut and len(said) >= ask.LEAST_OBEYED and ask.OBEYED.startswith(said)
        self._saw(Feature.RESPONSE_FORMAT, said == ask.OBEYED or cut)

    async def _choices(self) -> None:
        """Two choices, of greedy sampling where that is not refused."""
        asked = {"n": 2, "logprobs": True, "top_logprobs": 2}
        reply = await self._chat(1, **asked)
        self._saw(Feature.GREEDY_CHOICES, len(reply.choices) == 2)
        if reply.status != 200:
            reply = await self._chat(1, temperature=1, **asked)
        self._plain_prompt = reply.usage("prompt_tokens")
        self._saw(Feature.N, len(reply.choices) == 2)
        logprobs = (reply.choices[0].get("logprobs") or {}) if reply.choices else {}
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        first = content[0] if isinstance(content, list) and content else {}
        self._saw(Feature.LOGPROBS, isinstance(first, dict) and "logprob" in first)
        self._saw(Feature.TOP_LOGPROBS, isinstance(first, dict) and bool(first.get("top_logprobs")))

    async def _fields(self) -> None:
        """Fields that are listed, or refused with a wrong type and taken with the right one."""
        wrong = {name: ask.TYPED[name][2] for name in ask.TYPED if self._worth_asking(name)}
        known = (await self._chat(1, **wrong)).refused(wrong) if wrong else set()
        known.update(name for name in self._budgets() if ask.TYPED[name][0] not in self.seen.features)
        taken = await self._taken({name: ask.TYPED[name][1] for name in ask.TYPED if name in known})
        for name, (feature, _, _) in ask.TYPED.items():
            listed = name in self._listed and name not in THINKING_BUDGETS
            self._saw(feature, listed or name in taken or feature in self.seen.features)

    def _worth_asking(self, name: str) -> bool:
        """Whether a wrong type would tell more: the field is not listed, nor another name of one that is."""
        if not self._listed or name not in THINKING_BUDGETS:
            return name not in self._listed
        return self._reasoned and self._listed.isdisjoint(THINKING_BUDGETS)

    async def _taken(self, fields: Mapping[str, Any]) -> set[str]:
        """Those that the server takes with values of the right type: a strict one refuses what it lacks."""
        if not fields:
            return set()
        exact = fields.keys() >= ask.EXACT.keys()
        reply = await self._chat(6 if exact else 1, **fields)
        if exact and reply.status == 200:
            self._exact = reply.usage("completion_tokens") == 6
        return set(fields) - reply.refused(fields) if reply.status in (200, 400, 422) else set()

    async def _completions(self, described: frozenset[str]) -> None:
        lengths = self._exact is None and self.seen.features >= ask.LENGTHS
        ids = await self._complete(6 if lengths else 1, prompt=[5, 6, 7], **(ask.EXACT if lengths else {}))
        self._saw(Feature.TOKEN_IDS, ids.usage("prompt_tokens") == 3)
        if lengths:
            await self._lengths(ids)
        elif self._exact is False:
            self.seen.features -= ask.LENGTHS
        listed = {name: asked for name, (_, asked) in ask.COMPLETION_FIELDS.items() if name in described}
        # A field may be listed only to be refused.
        echoed = await self._complete(1, prompt="loadwise", echo=True, temperature=1, **listed)
        taken = echoed.status == 200
        if not taken and listed:
            echoed = await self._complete(1, prompt="loadwise", echo=True)
        text = echoed.choices[0].get("text") if echoed.choices else None
        self._saw(Feature.ECHO, isinstance(text, str) and text.startswith("loadwise"))
        for name, (feature, _) in ask.COMPLETION_FIELDS.items():
            self._saw(feature, taken and name in listed)

    async def _lengths(self, reply: Reply) -> None:
        """Exactly so many tokens, though the first may be no end."""
        if reply.status != 200:
            # The prompt's ids may be what was refused.
            reply = await self._chat(6, **ask.EXACT)
        if reply.usage("completion_tokens") != 6:
            self.seen.features -= ask.LENGTHS

    async def _media(self) -> None:
        """An image that was read is tokens of the prompt; one that was passed over is none."""
        if self._plain_prompt is None:
            self._plain_prompt = (await self._chat(1)).usage("prompt_tokens")
        image = {"type": "image_url", "image_url": {"url": ask.PIXEL}}
        content = [image, {"type": "text", "text": ask.PROMPT}]
        reply = await self._chat(1, messages=[{"role": "user", "content": content}])
        read, plain = reply.usage("prompt_tokens"), self._plain_prompt
        self._saw(Feature.MEDIA, read is not None and plain is not None and read > plain)

    # --- asking ---

    def _saw(self, feature: Feature, seen: bool) -> None:
        if seen:
            self.seen.features.add(feature)
        else:
            self.seen.features.discard(feature)

    async def _briefly(self, tokens: int, **fields: Any) -> Reply:
        """Asked so that thinking leaves room for the answer, where the model thinks and a budget is taken."""
        budgets = self._budgets()
        reply = await self._chat(tokens, **budgets, **fields)
        if budgets and reply.status != 200 and reply.names(budgets):
            self._refused_budgets |= reply.names(budgets)
            return await self._briefly(tokens, **fields)
        if reply.only_thought:
            self._refused_budgets.update(budgets)
        elif reply.status == 200:
            self.seen.features.update(ask.TYPED[name][0] for name in budgets)
        thought = reply.reasoned and reply.cut and not budgets
        return await self._briefly(tokens, **fields) if thought and self._budgets() else reply

    def _budgets(self) -> dict[str, int]:
        """The budgets that may be taken; none while no thoughts were seen."""
        left = [name for name in THINKING_BUDGETS if name not in self._refused_budgets]
        return {name: 1 for name in left if name in self._listed} if self._reasoned else {}

    async def _chat(self, tokens: int, **fields: Any) -> Reply:
        asked = {"messages": [{"role": "user", "content": ask.PROMPT}], "temperature": 0, **fields}
        body = {"model": self._model, "max_tokens": tokens, **asked}
        return await self._post(Endpoint.CHAT.value, body, tokens * int(fields.get("n", 1)))

    async def _complete(self, tokens: int, **fields: Any) -> Reply:
        body = {"model": self._model, "max_tokens": tokens, "temperature": 0, **fields}
        return await self._post(Endpoint.COMPLETION.value, body, tokens)

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
            reply = reply_of(*await self._send(method, path, body))
        except EngineError:
            return Reply(0, {})
        self.seen.answered |= reply.status == 200 and method == "POST" and "choices" in reply.body
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
