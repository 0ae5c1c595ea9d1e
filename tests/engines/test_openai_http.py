"""An upstream behind the Engine port: pass-through, honest endings, nothing of its own."""

import asyncio
import json

import pytest

from loadwise.decision.facts import Endpoint
from loadwise.engines import openai_http
from loadwise.engines.openai_http import OpenAIEngine
from loadwise.errors import EngineError
from loadwise.settings import TimeoutSettings
from loadwise.testing import Behaviour, FakeClock, StubUpstream
from loadwise.testing.engine_contract import make_call, read

QUICK = TimeoutSettings(connect_s=5, first_byte_s=0.05, idle_s=0.05, total_s=30)


@pytest.fixture
async def served():
    stub = StubUpstream()
    url = await stub.start()
    yield stub, url
    await stub.close()


@pytest.fixture
async def open_engine(served):
    _, url = served
    opened = []

    async def make(**options):
        engine = OpenAIEngine(url + "/v1/", replica_id="far-0", clock=FakeClock(), **options)
        await engine.start()
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        await engine.close()


def sent(stub):
    return json.loads(stub.received[-1].body)


async def test_it_takes_name_and_context_from_the_server(served, open_engine):
    engine = await open_engine()
    assert engine.model == "stub"
    assert engine.capabilities.context_tokens == 1024
    assert not engine.capabilities.features_known
    configured = await open_engine(model="other", context_tokens=77)
    assert (configured.model, configured.capabilities.context_tokens) == ("other", 77)


async def test_llama_cpp_says_its_context_elsewhere(served, open_engine):
    served[0].behaviour.models = ({"id": "llama", "meta": {"n_ctx_train": 4096}},)
    assert (await open_engine()).capabilities.context_tokens == 4096
    served[0].behaviour.models = ({"id": "llama", "meta": {"n_ctx": 512, "n_ctx_train": 4096}},)
    assert (await open_engine()).capabilities.context_tokens == 512


async def test_only_the_name_of_the_model_changes_on_the_way(served, open_engine):
    engine = await open_engine()
    call = make_call(Endpoint.CHAT, tools=[{"deep": {"é": [1.5, None]}}], unknown=12345678901234567890)
    await read(await engine.answer(call))
    assert sent(served[0]) == json.loads(call.body) | {"model": "stub"}


async def test_the_key_goes_to_the_server_and_the_client_s_does_not(served, open_engine):
    engine = await open_engine(api_key="ours")
    await engine.answer(make_call())
    assert served[0].received[-1].headers["authorization"] == "Bearer ours"
    assert served[0].received[-1].headers["x-request-id"] == "contract-1"


async def test_a_stream_comes_back_byte_for_byte(served, open_engine):
    engine = await open_engine()
    asked = await engine.answer(make_call(stream=True, stream_options={"include_usage": True}))
    whole = await read(asked)
    unasked = await engine.answer(make_call(stream=True))
    hidden = await read(unasked)
    events = whole.split(b"\n\n")
    assert [event for event in events if b'"usage"' not in event] == hidden.split(b"\n\n")
    assert unasked.progress == asked.progress
    assert unasked.progress.output_tokens == 8
    assert sent(served[0])["stream_options"] == {"include_usage": True}


async def test_a_server_that_refuses_stream_options_is_asked_without(served, open_engine, monkeypatch):
    stub, _ = served
    original = stub._generate

    async def refusing(request, connection):
        if b"stream_options" in request.body:
            connection.reply(400, b'{"error":{"message":"stream_options: not known"}}')
        else:
            await original(request, connection)

    monkeypatch.setattr(stub, "_generate", refusing)
    engine = await open_engine()
    answer = await engine.answer(make_call(stream=True))
    assert answer.status == 200
    await read(answer)
    count = len(stub.received)
    await read(await engine.answer(make_call(stream=True)))
    assert len(stub.received) == count + 1
    assert (await engine.observe()).running_requests == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_of_the_server_come_back_as_they_are(served, open_engine, streamed):
    served[0].behaviour.status = 429
    engine = await open_engine()
    answer = await engine.answer(make_call(stream=streamed))
    assert answer.status == 429
    assert dict(answer.headers)["retry-after"] == "3"
    assert json.loads(await read(answer))["error"]["type"] == "rate_limit_error"
    assert (await engine.observe()).running_requests == 0


async def test_a_server_that_is_down_raises_before_anything_is_sent(unused_tcp_port):
    engine = OpenAIEngine(f"http://127.0.0.1:{unused_tcp_port}", replica_id="far-0", clock=FakeClock())
    with pytest.raises(EngineError, match="not started"):
        await engine.answer(make_call())
    await engine.start()
    for model in (None, "named"):
        engine.model = model
        with pytest.raises(EngineError, match="cannot be reached"):
            await engine.answer(make_call())
    with pytest.raises(EngineError):
        await engine.observe()
    await engine.close()


async def test_a_stream_that_dies_at_once_may_be_tried_elsewhere(served, open_engine):
    engine = await open_engine()
    served[0].behaviour.dies_after = 0
    with pytest.raises(EngineError):
        await engine.answer(make_call(stream=True))
    assert (await engine.observe()).running_requests == 0


async def test_a_stream_that_dies_later_ends_with_an_error_and_done(served, open_engine):
    engine = await open_engine()
    served[0].behaviour.dies_after = 3
    answer = await engine.answer(make_call(stream=True))
    events = (await read(answer)).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert json.loads(events[-3].removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert answer.progress.failed
    assert (await engine.observe()).running_requests == 0


async def test_a_silent_server_runs_into_its_time_limits(served, open_engine):
    engine = await open_engine(timeouts=QUICK)
    served[0].behaviour.hold = asyncio.Event()
    for streamed in (False, True):
        with pytest.raises(EngineError, match="in time"):
            await engine.answer(make_call(stream=streamed))
    served[0].behaviour.hold = None
    served[0].behaviour.token_delay_s = 30
    with pytest.raises(EngineError, match="silent"):
        await engine.answer(make_call(stream=True))


async def test_a_client_that_leaves_takes_the_upstream_s_request_along(served, open_engine):
    stub, _ = served
    engine = await open_engine()
    stub.behaviour.token_delay_s = 0.01
    answer = await engine.answer(make_call(stream=True))
    await answer.chunks.aclose()
    await answer.chunks.aclose()
    async with asyncio.timeout(10):
        await stub.quiet()
    assert stub.aborted == 1
    stub.behaviour.hold = asyncio.Event()
    task = asyncio.create_task(engine.answer(make_call()))
    async with asyncio.timeout(10):
        while stub.active == 0:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stub.quiet()
    assert stub.aborted == 2


async def test_closing_the_engine_ends_its_streams(served, open_engine):
    engine = await open_engine()
    served[0].behaviour.token_delay_s = 0.01
    await engine.answer(make_call(stream=True))
    await engine.close()
    async with asyncio.timeout(10):
        await served[0].quiet()
    assert served[0].active == 0


async def test_metrics_are_read_where_they_are_offered(served, open_engine):
    stub, _ = served
    engine = await open_engine(capacity_requests=9)
    own = await engine.observe()
    assert (own.running_requests, own.waiting_requests, own.capacity_requests) == (0, None, 9)
    asked = [request.path for request in stub.received].count("/metrics")
    await engine.observe()
    assert [request.path for request in stub.received].count("/metrics") == asked
    engine._clock.advance(61)
    stub.behaviour.metrics = "vllm:num_requests_running 4\nvllm:num_requests_waiting 2\n"
    read_ = await engine.observe()
    assert (read_.running_requests, read_.waiting_requests) == (4, 2)


async def test_a_server_too_busy_to_tell_of_itself_is_read_by_our_requests(served, open_engine, monkeypatch):
    stub, _ = served
    engine = await open_engine()
    monkeypatch.setattr(openai_http, "SCRAPE_S", 0.05)
    stub.behaviour.hold = asyncio.Event()
    with pytest.raises(EngineError, match="did not answer within"):
        await engine.observe()
    task = asyncio.create_task(engine.answer(make_call()))
    async with asyncio.timeout(10):
        while engine._accounting.in_flight == 0:
            await asyncio.sleep(0)
    assert (await engine.observe()).running_requests == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_tokens_are_not_guessed(open_engine):
    assert await (await open_engine()).count_tokens(make_call()) is None


class Raw:
    """A server that says exactly what a test gives it."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.accepted = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.engine = OpenAIEngine(f"http://127.0.0.1:{port}", replica_id="raw", clock=FakeClock(), model="m")
        return self

    async def __aexit__(self, *_):
        await self.engine.close()
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.accepted += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(length)
                answer = b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"
                if not head.startswith(b"GET"):
                    answer = self.answers.pop(0)
                writer.write(answer)
                await writer.drain()
                if b"content-length" not in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"text":"b","finish_reason":"stop"}]}\n\n'


async def streamed(raw, **fields):
    await raw.engine.start()
    answer = await raw.engine.answer(make_call(stream=True, **fields))
    return await read(answer), answer.progress


@pytest.mark.parametrize("asks", [False, True])
async def test_a_stream_without_done_gets_one_when_its_answer_is_whole(asks):
    async with Raw(HEAD + TOKEN + LAST) as raw:
        body, progress = await streamed(raw, stream_options={"include_usage": asks})
    assert body == TOKEN + LAST + b"data: [DONE]\n\n"
    assert not progress.failed


@pytest.mark.parametrize("asks", [False, True])
async def test_a_stream_that_stops_in_the_middle_is_an_error(asks):
    async with Raw(HEAD + TOKEN + b'data: {"choi') as raw:
        body, progress = await streamed(raw, stream_options={"include_usage": asks})
    assert body.startswith(TOKEN + b'data: {"choi\n\ndata: {"error"')
    assert body.endswith(b"data: [DONE]\n\n")
    assert progress.failed


async def test_an_empty_stream_may_be_tried_elsewhere():
    async with Raw(HEAD) as raw:
        with pytest.raises(EngineError, match="before it began"):
            await streamed(raw)


async def test_redirects_are_not_followed():
    async with Raw(b"HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n") as raw:
        with pytest.raises(EngineError, match="redirect"):
            await streamed(raw)


async def test_a_broken_body_is_no_answer():
    async with Raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab") as raw:
        await raw.engine.start()
        with pytest.raises(EngineError, match="broke off"):
            await raw.engine.answer(make_call())


async def test_a_connection_closed_while_idle_is_opened_again():
    whole = b'{"choices":[]}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(whole), whole)
    async with Raw(answer, b"", answer) as raw:
        await raw.engine.start()
        for _ in range(2):
            assert await read(await raw.engine.answer(make_call())) == whole
    assert raw.accepted == 2


async def test_a_model_list_that_is_none_is_an_error(served, open_engine):
    engine = await open_engine()
    served[0].behaviour.models = ({"no": "id"},)
    with pytest.raises(EngineError, match="cannot be understood"):
        await engine.models()


async def test_a_stub_with_delays_still_answers(served, open_engine):
    served[0].behaviour = Behaviour(tokens=2, first_delay_s=0.001, token_delay_s=0.001)
    engine = await open_engine()
    assert (await read(await engine.answer(make_call(stream=True)))).endswith(b"data: [DONE]\n\n")
