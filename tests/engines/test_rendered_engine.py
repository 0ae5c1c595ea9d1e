"""What a client gets from an embedded engine."""

import json

import pytest

from loadwise.decision.facts import Endpoint
from loadwise.engines.rendering import RenderedEngine
from loadwise.ports import Call
from loadwise.testing import FakeClock, FakeTokenEngine
from loadwise.testing.folders import write_tokenizer


@pytest.fixture
async def engine(tmp_path):
    fake = FakeTokenEngine()
    rendered = RenderedEngine(fake, write_tokenizer(tmp_path), "tiny", "tiny-0", FakeClock())
    await rendered.start()
    yield rendered
    await rendered.close()


def call(endpoint=Endpoint.COMPLETION, **body):
    return Call(
        endpoint=endpoint,
        body=json.dumps({"model": "tiny", **body}).encode(),
        request_id="r1",
        stream=body.get("stream", False),
    )


async def read(answer):
    return b"".join([chunk async for chunk in answer.chunks])


async def test_a_completion_answers_with_text(engine):
    answer = await engine.answer(call(prompt="héllo", temperature=0, max_tokens=50))
    body = json.loads(await read(answer))
    assert answer.status == 200
    assert body["choices"][0]["text"] == "héllo"


async def test_a_chat_stream_joins_to_the_answer(engine):
    answer = await engine.answer(
        call(
            Endpoint.CHAT,
            messages=[{"role": "user", "content": "hé"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    raw = await read(answer)
    assert raw.endswith(b"data: [DONE]\n\n")
