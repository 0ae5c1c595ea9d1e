"""What a server lists: its model's context and adapters, and that it serves a model no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import Endpoint
from loadwise.engines.listing import misses
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.errors import EngineError
from loadwise.ports import Call
from loadwise.testing import Behaviour, StubUpstream

# As vLLM lists a model under two names and two adapters of it.
VLLM = [
    {"id": "base", "root": "/models/base", "parent": None, "max_model_len": 512},
    {"id": "alias", "root": "/models/base", "parent": None, "max_model_len": 512},
    {"id": "sql", "root": "/adapters/sql", "parent": "base", "max_model_len": None},
    {"id": "law", "root": "/adapters/law", "parent": "base", "max_model_len": None},
]
PLAIN = [{"id": "base"}, {"id": "other"}]


async def joined(model: str | None, listed: list[dict[str, Any]]) -> tuple[OpenAIEngine, StubUpstream]:
    stub = StubUpstream(Behaviour(models=tuple(listed)))
    engine = OpenAIEngine(await stub.start(), replica_id="r", clock=SystemClock(), model=model)
    await engine.start()
    return engine, stub


@pytest.mark.parametrize(
    ("model", "listed", "adapters", "context"),
    [
        (None, VLLM, {"sql", "law"}, 512),
        ("alias", VLLM, {"sql", "law"}, 512),
        ("sql", VLLM, set(), 512),
        ("absent", VLLM, set(), None),
        ("base", VLLM[:2], set(), 512),
        ("base", PLAIN, None, None),
    ],
)
async def test_adapters_and_context_are_those_that_the_server_lists(model, listed, adapters, context) -> None:
    engine, stub = await joined(model, listed)
    assert engine.capabilities.adapters == adapters
    assert engine.capabilities.context_tokens == context
    await engine.close()
    await stub.close()


async def test_a_server_that_restarts_with_another_model_is_asked_for_that_one() -> None:
    engine, stub = await joined(None, VLLM)
    stub.behaviour.models = ({"id": "new", "max_model_len": 64},)
    await engine.discover()
    assert (engine.model, engine.capabilities.context_tokens) == ("new", 64)
    assert engine.capabilities.adapters is None
    await engine.close()
    await stub.close()


def error(**fields: Any) -> bytes:
    return json.dumps({"error": fields}).encode()


GONE = error(message="The model `sql` does not exist.", type="NotFoundError", param="model", code=404)


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (GONE, True),
        (error(message="The model 'sql' does not exist", type="x", param=None, code="model_not_found"), True),
        (error(message='model "sql" not found, try pulling it first', type="not_found_error"), True),
        (error(message="Not Found", type="NotFoundError", code=404), False),
        (error(message="No conversation sql-7", type="invalid_request_error"), False),
        (b'{"detail":"Not Found"}', False),
        (b'{"error":"sql"}', False),
        (b"sql", False),
        (b"[" * 5000, False),
    ],
)
def test_a_missing_model_is_told_from_a_missing_path(body: bytes, missing: bool) -> None:
    assert misses(body, "sql") is missing


async def test_a_replica_without_our_model_is_at_fault_and_not_the_client() -> None:
    engine, stub = await joined("sql", VLLM)
    stub.behaviour.refusal = (404, GONE)
    body = b'{"model":"auto","messages":[{"role":"user","content":"a"}]}'
    with pytest.raises(EngineError, match="does not serve the model 'sql'"):
        await engine.answer(Call(endpoint=Endpoint.CHAT, body=body, request_id="1"))
    stub.behaviour.refusal = (404, error(message="Not Found", type="NotFoundError", code=404))
    answer = await engine.answer(Call(endpoint=Endpoint.CHAT, body=body, request_id="2"))
    assert answer.status == 404
    await engine.close()
    await stub.close()
