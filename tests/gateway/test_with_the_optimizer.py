"""The gateway over the real optimizer: its views keep the documented shapes, its requests are decided."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest

from loadwise.clock import SystemClock
from loadwise.decision.facts import HostReading
from loadwise.engines.rendering.engine import RenderedEngine
from loadwise.gateway.build import build_gateway
from loadwise.gateway.control_plane import SHAPES
from loadwise.optimizer.factory import build
from loadwise.optimizer.fleet import MemberParts, single
from loadwise.settings import OptimizationConfig, Settings
from loadwise.testing.fakes import FakeTokenEngine

BASE = "/v1/optimization"
TURNS = [{"role": "user", "content": "hello there"}]
OPENED = [*TURNS, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "go on"}]


class QuietHost:
    """A machine that does nothing."""

    def read(self) -> HostReading:
        return HostReading(read_s=0.0, cpu_usage_percent=5.0, memory_usage_percent=20.0)


@pytest.fixture
async def site(site_of, on_socket, tokenizer_folder, tmp_path):
    clock = SystemClock()
    members, engines = [], []
    for name, quality in (("fast", 0.6), ("accurate", 1.0)):
        tokens = FakeTokenEngine(answer_length=4, clock=clock)
        engine = RenderedEngine(tokens, tokenizer_folder, name, f"{name}/0", clock)
        await engine.start()
        engines.append(engine)
        member = replace(single(name, quality=quality, weight=1.0), capabilities=engine.capabilities)
        members.append(MemberParts(member=member, engines={member.replicas[0].replica_id: engine}))
    config = OptimizationConfig(
        enable_torch_compile=False, experiment={"block_share": 0.0, "conversation_share": 0.0}
    )
    made = build(config, members, host=QuietHost(), state_dir=tmp_path, report_dir=tmp_path / "reports")
    await made.optimizer.start_optimization()
    site = site_of()
    site.app = build_gateway(Settings(), made.director, made.control, made.telemetry, clock)
    async with on_socket(site):
        yield site
    await made.optimizer.close()
    for engine in engines:
        await engine.close()


@pytest.fixture
async def client(site):
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("name", sorted(SHAPES))
async def test_views_keep_their_documented_shapes(site, client, name):
    await client.chat.completions.create(model="auto", messages=TURNS)
    reply = await site.ask("GET", f"{BASE}/{name}")
    assert reply.status == 200
    assert SHAPES[name].model_validate(reply.json())


async def test_auto_chooses_a_name_is_obeyed_and_both_are_counted(site, client):
    for model, expected in (("auto", {"fast", "accurate"}), ("fast", {"fast"}), ("accurate", {"accurate"})):
        answer = await client.chat.completions.with_raw_response.create(model=model, messages=TURNS)
        assert answer.headers["x-loadwise-member"] in expected
        assert answer.headers["x-loadwise-config"] == "1"
        assert answer.parse().model in expected
    metrics = (await site.ask("GET", "/metrics")).body
    assert b"loadwise_requests_total" in metrics
    report = (await site.ask("GET", f"{BASE}/report")).json()
    assert report["total_requests"] == 3


async def test_a_conversation_keeps_its_member(client):
    create = client.chat.completions.with_raw_response.create
    answers = [await create(model="auto", messages=OPENED) for _ in range(12)]
    assert len({answer.headers["x-loadwise-member"] for answer in answers}) == 1


async def test_stopped_the_default_member_answers_untouched(site, client):
    await site.ask("POST", f"{BASE}/stop")
    answer = await client.chat.completions.with_raw_response.create(model="auto", messages=TURNS)
    assert answer.headers["x-loadwise-member"] == "accurate"
    assert answer.headers["x-loadwise-tuned"] == "none"
    assert answer.headers["x-loadwise-reason"] == "stopped"
    assert (await site.ask("GET", f"{BASE}/dashboard")).json()["system_status"] == "bypassed"


async def test_what_no_member_can_serve_is_refused_by_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="auto", messages=TURNS, tools=[{"type": "function"}])
    assert caught.value.body["param"] == "tools"


async def test_configure_applies_at_once_and_refuses_whole(site, client):
    reply = await site.ask("POST", f"{BASE}/configure", {"ensemble_strategy": "best_of_n"})
    assert reply.status == 200
    wrong = await site.ask("POST", f"{BASE}/configure", {"load_threshold_low": 0.9, "max_ensemble_size": 2})
    assert wrong.status == 400
    config = (await site.ask("GET", f"{BASE}/status")).json()["config"]
    assert (config["ensemble_strategy"], config["max_ensemble_size"]) == ("best_of_n", 3)


async def test_a_report_is_written_into_the_report_folder(site, tmp_path):
    reply = await site.ask("GET", f"{BASE}/report", query="export_file=true")
    assert reply.status == 200
    assert list((tmp_path / "reports").iterdir())


async def test_an_unknown_model_cannot_be_added(site):
    reply = await site.ask("POST", f"{BASE}/ensemble/add_model", query="model_id=../../etc/passwd")
    assert reply.status == 404


async def test_advisory_says_what_it_would_have_done_and_names_are_obeyed(site, client):
    reply = await site.ask("POST", f"{BASE}/configure", {"rollout": {"mode": "advisory"}})
    assert reply.status == 200
    answer = await client.chat.completions.with_raw_response.create(model="auto", messages=TURNS)
    assert answer.headers["x-loadwise-member"] == "accurate"
    assert answer.headers["x-loadwise-reason"] == "advisory"
    assert answer.headers["x-loadwise-tuned"] == "none"
    assert answer.headers["x-loadwise-advised"].startswith("member=")
    assert "max_tokens=" in answer.headers["x-loadwise-advised"]
    shown = (await site.ask("GET", f"{BASE}/status")).json()["rollout"]
    assert [(each["route"], each["share"]) for each in shown] == [("auto", 0.0)]
    named = await client.chat.completions.with_raw_response.create(model="fast", messages=TURNS)
    assert "x-loadwise-advised" not in named.headers
