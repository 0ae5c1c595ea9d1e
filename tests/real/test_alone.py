"""One engine with a key and with adapters that it may be given later; what it does not compile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.real.adapters import write_adapter
from tests.real.crowds import holds

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
KEY = "engine-key"
OPTIONS = f" --api-key {KEY} --enable-lora --max-lora-rank 8"


@pytest.fixture(scope="module", params=["aphrodite", "vllm"])
def alone(
    request: pytest.FixtureRequest, start: Any, model_folder: Path, tmp_path_factory: Any, rig_type: Any
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("adapters")
    (allowed := folder / "allowed").mkdir()
    write_adapter(allowed / "later", model_folder)
    write_adapter(folder / "outside", model_folder)
    (allowed / "link").symlink_to(folder / "outside")
    with start(request.param, inside=True, more=OPTIONS, LOADWISE_MODEL_DIR=str(allowed)) as server:
        yield rig_of(rig_type, server)


def rig_of(rig_type: Any, server: Any) -> Any:
    engine = server.name.partition(" ")[0]
    return rig_type(f"{engine}-inside", server.url, server.url, engine, key=KEY)


def complete(rig: Any, model: str, **headers: str) -> httpx.Response:
    asked = {"model": model, "prompt": "def f(", "max_tokens": 4, "ignore_eos": True}
    return httpx.post(
        rig.url + "/v1/completions", json=asked, headers=headers, timeout=240, trust_env=False, verify=False
    )


def add(rig: Any, name: str) -> httpx.Response:
    with rig.operator() as operator:
        return operator.post(f"/v1/optimization/ensemble/add_model?model_id={name}")


def test_the_engine_alone_compiles_its_model_and_says_how_it_may_be_told_to(alone: Any) -> None:
    with alone.operator() as operator:
        answer = operator.post("/v1/optimization/force_recompile")
    assert answer.status_code == 409
    assert "--compilation-config" in answer.json()["error"]["message"]


def test_who_lacks_the_engines_key_is_refused_by_it_and_counted_by_nobody(alone: Any) -> None:
    def outcomes() -> int:
        return sum(model["outcomes"] for model in alone.view("ensemble")["models"])

    assert complete(alone, alone.model, **alone.headers).status_code == 200
    # What was answered before is counted within a second.
    counted_s = time.monotonic() + 3
    holds(lambda: time.monotonic() > counted_s, 10)
    before = outcomes()
    refused = [complete(alone, alone.model), complete(alone, alone.model, authorization="Bearer other")]
    assert [answer.status_code for answer in refused] == [401, 401]
    # It would have been answered by loadwise's own words.
    assert not [name for answer in refused for name in answer.headers if name.startswith("x-loadwise")]
    assert complete(alone, alone.model, **alone.headers).status_code == 200
    holds(lambda: outcomes() > before, 10)
    assert outcomes() == before + 1
    with alone.operator() as operator:
        operator.headers.pop("authorization")
        assert operator.get("/v1/optimization/status").status_code == 401


def test_an_adapter_of_the_allowed_folder_is_served_once_it_is_a_member(alone: Any) -> None:
    assert complete(alone, "later", **alone.headers).status_code == 404
    added = add(alone, "later")
    assert added.status_code == 200, added.text
    answer = complete(alone, "later", **alone.headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-loadwise-member"] == "later"


@pytest.mark.parametrize("name", ["link", "outside", "../outside"])
def test_no_other_adapter_is_loaded(alone: Any, name: str) -> None:
    assert add(alone, name).status_code in {400, 404}
    assert complete(alone, name, **alone.headers).status_code == 404


def test_an_engine_that_compiles_nothing_says_so(alone: Any) -> None:
    # Aphrodite serves eagerly on a processor, vLLM does with adapters.
    told = alone.view("status")["compilation_stats"][alone.model]
    assert (told["managed_by"], told["mode"]) == (alone.engine, "NONE")
    assert told["compile_seconds"] is told["graphs_compiled"] is told["cache_hit"] is None
