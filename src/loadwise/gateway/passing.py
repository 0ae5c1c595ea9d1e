"""Requests that are passed on as they are: who they are for is read, and nothing else is understood."""

from __future__ import annotations

import asyncio

import msgspec

from loadwise.decision.facts import Endpoint
from loadwise.engines import forms
from loadwise.errors import RequestError
from loadwise.gateway.asgi import Exchange
from loadwise.gateway.body import check_text
from loadwise.gateway.fields import PassedFields, decode, wrong_field
from loadwise.gateway.headers import to_engine
from loadwise.ports import Call

# Endpoints that take files.
FORMS = frozenset({Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS, Endpoint.IMAGE_EDITS})


async def passed_call(
    endpoint: Endpoint, exchange: Exchange, body: bytes, received_s: float
) -> tuple[Call, PassedFields]:
    """The call and what was read of it; `RequestError` 400 when the body is neither JSON nor a form."""
    content_type = "application/json"
    if endpoint in FORMS:
        content_type = exchange.header(b"content-type") or ""
        # A form may be large: the event loop does not wait for its parser.
        fields = await asyncio.to_thread(_of_form, body, content_type)
    else:
        await check_text(body)
        fields = _of_json(endpoint, body)
    call = Call(
        endpoint=endpoint,
        body=body,
        request_id=exchange.request_id,
        stream=bool(fields.stream),
        content_type=content_type,
        headers=to_engine(exchange.scope),
        received_s=received_s,
    )
    return call, fields


def _of_json(endpoint: Endpoint, body: bytes) -> PassedFields:
    fields = decode(endpoint, body)
    if not isinstance(fields, PassedFields):
        raise TypeError(f"{endpoint.value} is not passed on")
    return fields


def _of_form(body: bytes, content_type: str) -> PassedFields:
    found = forms.read_form(body, content_type)
    texts = {name: found[name].value for name in ("model", "stream") if name in found}
    try:
        return msgspec.convert(
            {name: value.decode() for name, value in texts.items()}, PassedFields, strict=False
        )
    except UnicodeDecodeError:
        raise RequestError("model: expected UTF-8.", param="model") from None
    except msgspec.ValidationError as error:
        raise wrong_field(error) from None
