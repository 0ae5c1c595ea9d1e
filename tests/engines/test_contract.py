"""Every engine, real or fake, keeps the shipped contract."""

import pytest

from loadwise.engines.openai_http import OpenAIEngine
from loadwise.engines.rendering import RenderedEngine
from loadwise.testing import Behaviour, FakeClock, FakeEngine, FakeTokenEngine, StubUpstream
from loadwise.testing.engine_contract import BoundedQueueContract, EngineContract, SamplingContract


class TestRendered(EngineContract, SamplingContract):
    @pytest.fixture
    async def engine(self, rendered):
        return rendered


class TestRenderedQueue(BoundedQueueContract):
    @pytest.fixture
    async def engine(self, tokenizer_folder, clock):
        fake = FakeTokenEngine(capacity=self.places, queue_limit=self.queue)
        engine = RenderedEngine(fake, tokenizer_folder, "tiny", "tiny-0", clock)
        await engine.start()
        yield engine
        await engine.close()


class TestFake(EngineContract, BoundedQueueContract):
    @pytest.fixture
    async def engine(self):
        return FakeEngine(capacity=self.places, queue_limit=self.queue)


class TestUpstream(EngineContract):
    endless = EngineContract.endless | {"ignore_eos": False}

    @pytest.fixture
    async def engine(self):
        stub = StubUpstream(Behaviour(tokens=5))
        engine = OpenAIEngine(await stub.start(), replica_id="far-0", clock=FakeClock())
        await engine.start()
        # Endless answers come slowly enough to be interrupted.
        stub.behaviour.token_delay_s = 0.001
        yield engine
        await engine.close()
        await stub.close()


class TestOpenVino(EngineContract, SamplingContract):
    @pytest.fixture
    async def engine(self, openvino_folder, clock):
        from loadwise.engines.openvino import OpenVinoEngine

        inner = OpenVinoEngine(openvino_folder, clock=clock, max_running=4, kv_cache_bytes=2**22)
        engine = RenderedEngine(inner, openvino_folder, "fast", "fast-0", clock)
        await engine.start()
        yield engine
        await engine.close()


class TestOpenVinoQueue(BoundedQueueContract):
    @pytest.fixture
    async def engine(self, openvino_token_engine, openvino_folder, clock):
        engine = RenderedEngine(openvino_token_engine, openvino_folder, "fast", "fast-0", clock)
        await engine.start()
        yield engine
        await engine.close()
