"""Adapters of one engine as members: chosen by quality and reliability, never for relief from load."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadwise.app.inside import adapters as module
from loadwise.app.inside.adapters import RuntimeAdapters
from loadwise.app.inside.members import EngineMembers
from loadwise.decision.facts import Ending, Outcome, RequestFacts
from loadwise.engines.inside.merging import Views
from loadwise.errors import EngineError, UnknownNameError
from loadwise.optimizer.plan import plan_of
from loadwise.ports import AddModel
from loadwise.settings import load_settings
from loadwise.testing import FakeClock


def outcome(member: str, seconds_per_token: float, at_s: float) -> Outcome:
    return Outcome(
        request_id="r",
        member_id=member,
        replica_id=f"{member}-0",
        ending=Ending.SUCCEEDED,
        finished_s=at_s,
        total_s=0.1 + 50 * seconds_per_token,
        time_to_first_token_s=0.1,
        output_tokens=51,
        prompt_tokens=10,
    )


def shares(site: Any) -> dict[str, float]:
    found = [site.desk.dispatch(RequestFacts(request_id=str(place))) for place in range(400)]
    members = [dispatch.member_id for dispatch in found]
    return {name: members.count(name) / len(members) for name in set(members)}


@pytest.mark.parametrize("strategy", ["adaptive", "weighted_voting", "best_of_n"])
async def test_load_moves_no_request_from_one_adapter_to_another(site_of, strategy) -> None:
    site = await site_of("tuned", ensemble_strategy=strategy)
    ensemble = site.made.optimizer.ensemble_manager
    ensemble.fleet.update("tuned", quality=0.9)
    ensemble.fleet.update("stub", quality=0.6)
    ensemble.know_members()
    for name, quality in (("tuned", 0.9), ("stub", 0.6)):
        ensemble.beliefs[name] = ensemble.beliefs[name]._replace(quality=quality)
        for _ in range(60):
            site.clock.advance(0.01)
            ensemble.learn(outcome(name, 0.001, site.clock.monotonic_s()))
    site.publish()
    quiet = shares(site)
    for _ in range(300):
        # The one of higher quality was measured while the engine was far too busy.
        ensemble.learn(outcome("tuned", 0.5, site.clock.monotonic_s()))
    site.desk.plan = plan_of(site.made.optimizer, 99)
    busy = shares(site)
    assert quiet["tuned"] > quiet.get("stub", 0.0)
    assert busy["tuned"] == pytest.approx(quiet["tuned"], abs=0.1)


async def test_an_adapter_named_is_the_adapter_that_answers(site_of) -> None:
    site = await site_of("tuned")
    for name in ("tuned", "stub"):
        dispatch = site.desk.dispatch(RequestFacts(request_id="r", model=name))
        assert (dispatch.member_id, dispatch.reason) == (name, "named")


async def test_a_conversation_keeps_its_adapter_in_every_process(site_of) -> None:
    site = await site_of("tuned")
    turns = [
        site.desk.dispatch(RequestFacts(request_id="r", conversation_id="c1", continues=True)).member_id
        for _ in range(20)
    ]
    assert len(set(turns)) == 1


class Served:
    """The engine's list of what it serves; refuses what is called broken."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str]] = []

    async def load_lora_adapter(self, request: Any) -> Any:
        self.loaded.append((request.lora_name, request.lora_path))
        if request.lora_name == "broken":
            return SimpleNamespace(error=SimpleNamespace(message="rank too high"))
        return "Success"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sql", "broken"):
        (tmp_path / "allowed" / name).mkdir(parents=True)
        (tmp_path / "allowed" / name / "adapter_config.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "adapter_config.json").write_text("{}")
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "allowed"


@pytest.fixture
def catalogue(folder, describe, monkeypatch) -> Any:
    protocol = SimpleNamespace(LoadLoRAAdapterRequest=SimpleNamespace)
    monkeypatch.setattr(module.importlib, "import_module", lambda name: protocol)

    async def make(served: Served, processes: int = 1) -> EngineMembers:
        clock = FakeClock()
        views = Views(clock, replica_id="stub-0", capacity_requests=8)
        runtime = RuntimeAdapters("vllm", served, folder)
        settings = load_settings(state_dir=folder)
        return EngineMembers(settings, describe(processes=processes), views, clock, runtime)

    return make


async def test_an_adapter_of_the_allowed_folder_is_loaded_and_becomes_a_member(catalogue, folder) -> None:
    served = Served()
    members = await catalogue(served)
    assert list(await members.names()) == ["broken", "sql"]
    parts = await members.open("sql")
    assert parts.member.member_id == "sql"
    assert served.loaded == [("sql", str(folder / "sql"))]


@pytest.mark.parametrize("name", ["link", "outside", "../outside", "nobody"])
async def test_nothing_outside_the_folder_is_loaded(catalogue, name) -> None:
    served = Served()
    members = await catalogue(served)
    with pytest.raises(UnknownNameError):
        await members.open(name)
    assert served.loaded == []


async def test_several_processes_are_given_no_adapter_at_run_time(catalogue) -> None:
    served = Served()
    members = await catalogue(served, processes=2)
    assert list(await members.names()) == []
    with pytest.raises(UnknownNameError):
        await members.open("sql")


async def test_what_the_engine_refuses_is_refused_with_its_reason(catalogue) -> None:
    members = await catalogue(Served())
    with pytest.raises(EngineError, match="rank too high"):
        await members.open("broken")


async def test_what_the_engine_does_not_have_is_not_admitted(site_of) -> None:
    site = await site_of()
    with pytest.raises(UnknownNameError):
        await site.made.control.apply(AddModel(model_id="tuned"))
    assert site.made.optimizer.ensemble_manager.fleet.active() == ("stub",)
