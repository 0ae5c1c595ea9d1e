"""Engines and folders that several test files use."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from loadwise.engines.openvino import OpenVinoEngine
from loadwise.engines.rendering import RenderedEngine
from loadwise.engines.tokenizer import Tokenizer
from loadwise.testing import FakeClock, FakeTokenEngine, StubUpstream
from loadwise.testing.folders import write_tokenizer

# Claims hold on slow machines too.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def token_engine() -> FakeTokenEngine:
    return FakeTokenEngine(capacity=2, queue_limit=64)


@pytest.fixture
async def rendered(token_engine, tokenizer_folder, clock):
    engine = RenderedEngine(token_engine, tokenizer_folder, "tiny", "tiny-0", clock)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def stub():
    server = StubUpstream()
    await server.start()
    yield server
    await server.close()


@pytest.fixture(scope="session")
def openvino_folder() -> Path:
    models = pytest.importorskip("loadwise_models", reason="the demo family is not installed")
    folder = models.family()["fast"]
    if not (folder / "openvino_model.xml").is_file():
        pytest.skip("the demo family has no OpenVINO form yet")
    pytest.importorskip("openvino_genai")
    return folder


@pytest.fixture
def openvino_token_engine(openvino_folder, clock) -> OpenVinoEngine:
    return OpenVinoEngine(openvino_folder, clock=clock, max_running=2, queue_limit=1, kv_cache_bytes=2**20)
