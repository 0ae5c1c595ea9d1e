"""Chat templates: an operator's model folder says how messages become one text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loadwise.errors import ConfigurationError, RequestError
from loadwise.ports import Clock

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

_NONE: Mapping[str, Any] = MappingProxyType({})


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; here its content is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - the base class says what it is

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders messages with a folder's own template, in a sandbox that can change nothing."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], clock: Clock) -> None:
        self._special_tokens = dict(special_tokens)
        self._clock = clock
        self._template = None if source is None else self._compile(source)

    @classmethod
    def load(cls, folder: Path, clock: Clock) -> ChatTemplate:
        """The folder's template; a folder without one renders nothing and says so per request."""
        config = _read_config(folder / CONFIG_FILE)
        separate = folder / TEMPLATE_FILE
        source = (
            separate.read_text(encoding="utf-8")
            if separate.is_file()
            else _named(config.get("chat_template"))
        )
        special = {
            name: text for name in SPECIAL_TOKENS if (text := _token_text(config.get(name))) is not None
        }
        return cls(source, special, clock)

    @property
    def available(self) -> bool:
        """Whether the folder has a template."""
        return self._template is not None

    def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = _NONE) -> str:
        """The prompt's text; `options` are what the client tells the template besides.

        Raises `RequestError` when there is no template, when it refuses the messages, or when an option is
        called like the messages themselves.
        """
        if self._template is None:
            raise RequestError("This model has no chat template: use /v1/completions.", param="messages")
        if "messages" in options:
            raise RequestError(
                "chat_template_kwargs: 'messages' are the request's own; leave the name out.",
                param="chat_template_kwargs",
            )
        try:
            return self._template.render(
                {"add_generation_prompt": True, **self._special_tokens, **options, "messages": messages}
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
        ) as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None

    def _compile(self, source: str) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = self._strftime_now
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigurationError(
                f"The model's chat template is not valid: {error}", field="path"
            ) from None

    def _strftime_now(self, form: str) -> str:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC).strftime(form)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", field="path") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} must hold a JSON object.", field="path")
    return config


def _named(template: Any) -> str | None:
    """The template itself, or the one named default among several."""
    if isinstance(template, list):
        template = next((item.get("template") for item in template if item.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
