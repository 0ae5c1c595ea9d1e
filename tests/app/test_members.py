"""Members: what settings name is opened, what they do not name cannot be reached."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadwise.app.members import Members
from loadwise.clock import SystemClock
from loadwise.engines.catalogue import Catalogue, OpenedModel
from loadwise.engines.chosen import remember_qualities
from loadwise.errors import ConfigurationError, UnknownNameError
from loadwise.optimizer.abilities import refresh
from loadwise.optimizer.fleet import Fleet
from loadwise.settings import OptimizationConfig, load_settings
from loadwise.testing import FakeEngine, StubUpstream


@pytest.fixture
async def stub() -> AsyncIterator[StubUpstream]:
    server = StubUpstream()
    await server.start()
    yield server
    await server.close()


def members(**settings: object) -> Members:
    loaded = load_settings(**settings)
    return Members(loaded, Catalogue(loaded, SystemClock()))


async def test_an_upstream_is_a_member_with_its_own_pool_and_context(stub: StubUpstream) -> None:
    opened = members(upstreams={"eu": {"url": stub.url, "quality": 0.5, "capacity_requests": 4}})
    (parts,) = await opened.open_all()
    await opened.close()
    assert parts.member.member_id == "eu"
    assert parts.member.quality == 0.5
    assert parts.member.capabilities.context_tokens == 1024
    assert parts.member.replicas[0].pool_id == "eu-0"
    assert parts.member.replicas[0].capacity_requests == 4
    assert parts.engine_kind == "openai_http"


async def test_replicas_share_a_pool_only_when_the_operator_says_so(stub: StubUpstream) -> None:
    opened = members(
        upstreams={
            "apart": {"url": stub.url, "replicas": [stub.url]},
            "together": {"url": stub.url, "replicas": [stub.url], "pool": "gpu"},
        }
    )
    parts = {part.member.member_id: part.member for part in await opened.open_all()}
    await opened.close()
    assert [r.pool_id for r in parts["apart"].replicas] == ["apart-0", "apart-1"]
    assert [r.pool_id for r in parts["together"].replicas] == ["gpu", "gpu"]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are opened by an engine that answers without them."""

    async def opened(self: Catalogue, name: str, model: object, replica_id: str) -> OpenedModel:
        return OpenedModel(engine=FakeEngine(), kind="torch", reason="fake")  # type: ignore[arg-type]

    monkeypatch.setattr(Catalogue, "open_model", opened)


def card(folder: Path, loss: float) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = {"family": "f", "held_out_loss_nats_per_token": loss, "parameters": 10}
    (folder / "loadwise.json").write_text(json.dumps(said))
    return folder


@pytest.mark.usefixtures("opens")
async def test_variant_has_the_quality_that_was_measured_and_an_unmeasured_one_has_none(
    tmp_path: Path,
) -> None:
    best, worse = card(tmp_path / "best", 2.0), card(tmp_path / "worse", 2.5)
    cache = tmp_path / "cache"
    remember_qualities(cache, worse, {"openvino/int8": 0.9})
    models = {
        "best": {"path": best},
        "exact": {"path": worse, "form": "openvino/fp16"},
        "variant": {"path": worse, "form": "openvino/int8"},
        "unmeasured": {"path": worse, "form": "openvino/int4"},
        "said": {"path": worse, "form": "openvino/int4", "quality": 0.3},
    }
    opened = members(models=models, cache_dir=cache)
    found = {part.member.member_id: part.member.quality for part in await opened.open_all()}
    await opened.close()
    own = math.exp(-0.5)
    assert found == {
        "best": 1.0,
        "exact": pytest.approx(own),
        "variant": pytest.approx(0.9 * own),
        "unmeasured": None,
        "said": 0.3,
    }


async def test_an_upstream_that_is_down_does_not_stop_the_start() -> None:
    opened = members(upstreams={"down": {"url": "http://127.0.0.1:9"}})
    (parts,) = await opened.open_all()
    await opened.close()
    assert parts.member.capabilities.context_tokens is None


async def test_other_models_of_an_upstream_may_be_admitted_by_name(stub: StubUpstream) -> None:
    stub.behaviour.models = ({"id": "first"}, {"id": "second", "max_model_len": 77})
    opened = members(upstreams={"eu": {"url": stub.url, "replicas": [stub.url]}})
    (first,) = await opened.open_all()
    assert await opened.names() == ["second"]
    parts = await opened.open("second")
    await opened.close()
    assert parts.member.capabilities.context_tokens == 77
    # One server, one device: choosing between its models is no relief from load.
    pools = [[replica.pool_id for replica in each.member.replicas] for each in (first, parts)]
    assert pools == [["eu-0", "eu-1"]] * 2


@pytest.mark.parametrize("name", ["nothing", "../secret", "/etc", "http://127.0.0.1:1", ""])
async def test_a_name_outside_the_catalogue_is_unknown(stub: StubUpstream, tmp_path: Path, name: str) -> None:
    (tmp_path / "models").mkdir()
    opened = members(upstreams={"eu": {"url": stub.url}}, model_dir=tmp_path / "models")
    with pytest.raises(UnknownNameError, match="Known"):
        await opened.open(name)
    await opened.close()


async def test_a_link_out_of_the_model_folder_is_not_in_the_catalogue(
    stub: StubUpstream, tmp_path: Path
) -> None:
    for place in (tmp_path / "models" / "inside", tmp_path / "outside"):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "models" / "escape").symlink_to(tmp_path / "outside")
    opened = members(upstreams={"eu": {"url": stub.url}}, model_dir=tmp_path / "models")
    assert await opened.names() == ["inside"]
    await opened.close()


def test_a_model_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no folder"):
        members(upstreams={"eu": {"url": "http://127.0.0.1:9"}}, model_dir=tmp_path / "nowhere")


async def test_a_key_that_is_not_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EU_KEY", raising=False)
    opened = members(upstreams={"eu": {"url": "http://127.0.0.1:9", "api_key_env": "EU_KEY"}})
    with pytest.raises(ConfigurationError, match="EU_KEY"):
        await opened.open_all()
    await opened.close()


@pytest.mark.parametrize("key", ["two\nlines", "ключ", " \n"])
async def test_a_key_that_no_header_can_carry_is_refused_unseen(
    stub: StubUpstream, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("EU_KEY", key)
    opened = members(upstreams={"eu": {"url": stub.url, "api_key_env": "EU_KEY"}})
    with pytest.raises(ConfigurationError, match="EU_KEY") as refusal:
        await opened.open_all()
    await opened.close()
    assert refusal.value.field == "upstreams.eu.api_key_env"
    assert key not in str(refusal.value)


@pytest.mark.parametrize("key", ["open-sesame", "open-sesame\n"])
async def test_an_upstreams_key_is_sent_to_it(
    stub: StubUpstream, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("EU_KEY", key)
    opened = members(upstreams={"eu": {"url": stub.url, "api_key_env": "EU_KEY"}})
    await opened.open_all()
    await opened.close()
    assert {received.headers["authorization"] for received in stub.received} == {"Bearer open-sesame"}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"routes": {"auto": {"members": ["eu", "nowhere"]}}}, "routes.auto.members"),
        ({"optimization": {"default_member": "nowhere"}}, "optimization.default_member"),
    ],
)
async def test_a_member_that_settings_name_exists(stub: StubUpstream, settings: dict, field: str) -> None:
    opened = members(upstreams={"eu": {"url": stub.url}}, **settings)
    with pytest.raises(ConfigurationError, match=f"{field} names 'nowhere'.*Known: .*eu") as refusal:
        await opened.open_all()
    await opened.close()
    assert refusal.value.field == field


async def test_settings_may_name_a_model_that_is_admitted_later(stub: StubUpstream, tmp_path: Path) -> None:
    later = tmp_path / "models" / "later"
    later.mkdir(parents=True)
    (later / "config.json").write_text("{}")
    opened = members(
        upstreams={"eu": {"url": stub.url}},
        model_dir=later.parent,
        routes={"auto": {"members": ["eu", "later"], "default_member": "eu"}},
    )
    (parts,) = await opened.open_all()
    await opened.close()
    assert parts.member.member_id == "eu"


def test_a_routes_default_is_one_of_its_members() -> None:
    with pytest.raises(ConfigurationError, match=r"routes\.auto\.default_member 'other' is none"):
        members(routes={"auto": {"members": ["eu"], "default_member": "other"}})


async def test_a_members_terms_are_those_of_the_settings(stub: StubUpstream) -> None:
    opened = members(
        upstreams={
            "eu": {
                "url": stub.url,
                "price": {"input_per_million": 1, "output_per_million": 2},
                "limits": {"requests_per_minute": 9, "max_context_tokens": 512},
                "tags": ["paid"],
            }
        }
    )
    (parts,) = await opened.open_all()
    fleet = Fleet(OptimizationConfig())
    fleet.add(parts)
    refresh(fleet)
    await opened.close()
    member = fleet.parts("eu").member
    assert member.price is not None
    assert (member.price.output_per_million, member.limits.requests_per_minute) == (2.0, 9)
    assert member.tags == {"paid"}
    # The server says 1,024, and the operator less.
    assert member.capabilities.context_tokens == 512


async def test_what_an_upstream_lists_besides_has_no_price(stub: StubUpstream) -> None:
    stub.behaviour.models = ({"id": "one"}, {"id": "other"})
    price = {"input_per_million": 1, "output_per_million": 2}
    opened = members(upstreams={"eu": {"url": stub.url, "model": "one", "price": price, "tags": ["paid"]}})
    await opened.open_all()
    parts = await opened.open("other")
    await opened.close()
    assert (parts.member.price, parts.member.tags) == (None, {"paid"})
