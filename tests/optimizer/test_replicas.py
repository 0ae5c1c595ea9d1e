"""A replica that hangs beside others: who is asked, what is told, and how it comes back."""

from __future__ import annotations

from typing import Any

import pytest

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import Ending, EngineReading
from loadwise.decision.limits import Limits
from loadwise.errors import RequestError
from loadwise.optimizer.situation import text
from loadwise.ports import Dispatch, View
from loadwise.telemetry import names


def shows_tokens(server: Any, replica_id: str) -> None:
    """The replica's engine would say how many tokens come, and says none."""

    async def observe() -> EngineReading:
        return EngineReading(
            replica_id=replica_id, read_s=server.clock.monotonic_s(), output_tokens_per_s=0.0,
            capacity_requests=4, queue_capacity_requests=8,
        )  # fmt: skip

    server.engines[replica_id].observe = observe


class Site:
    """One member with three replicas, of which `deaf` answers nothing."""

    def __init__(self, server: Any) -> None:
        self.server, self.deaf = server, ""
        self.hung: list[Dispatch] = []
        server.director.running = True
        for number in range(3):
            shows_tokens(server, f"fast/{number}")

    def ask(self, number: int) -> str:
        """The replica that was asked; one that hears answers at once."""
        dispatch = self.server.dispatch(number, model="fast")
        if dispatch.replica_id == self.deaf:
            self.hung.append(dispatch)
        else:
            self.server.end(dispatch)
        return str(dispatch.replica_id)

    async def second(self, number: int = 0) -> list[str]:
        """Four requests, a look of the loop and one of the watch: the replicas that were asked."""
        self.server.clock.advance(1.0)
        asked = [self.ask(10 * number + each) for each in range(4)]
        await self.server.optimizer.cycle.probe()
        self.server.optimizer.watch.evaluate()
        return asked

    @property
    def standing(self) -> Health:
        found: Health = self.server.optimizer.ensemble_manager.beliefs["fast"].replicas["fast/1"].health
        return found

    def fired(self) -> set[tuple[str, str]]:
        return {(alert.name, alert.subject) for alert in self.server.heard.alerts if not alert.resolved}


@pytest.fixture
async def site(make: Any) -> Site:
    found = Site(make(replicas=3))
    for number in range(10):
        await found.second(number)
    return found


async def hangs(site: Site, seconds: int = 30) -> int:
    """One replica hangs; after how many seconds it was out."""
    site.deaf, left_after = "fast/1", 0
    for number in range(seconds):
        await site.second(100 + number)
        left_after += site.standing is Health.HEALTHY
    return left_after


async def test_it_is_out_within_half_a_minute_and_the_others_answer_everything(site: Site) -> None:
    assert await hangs(site) < 24
    asked = [name for number in range(4) for name in await site.second(1000 + number)]
    assert set(asked) == {"fast/0", "fast/2"}
    assert site.server.optimizer.ensemble_manager.members_out() == []
    beliefs = site.server.optimizer.ensemble_manager.beliefs
    assert beliefs["fast"].health is Health.HEALTHY


async def test_what_hangs_there_takes_no_place_of_the_others(site: Site) -> None:
    """Two replicas of twelve places each, whatever the third holds."""
    await hangs(site)
    for number in range(24):
        site.server.dispatch(2000 + number, model="fast", off=True)
    with pytest.raises(RequestError) as caught:
        site.server.dispatch(3000, model="fast", off=True)
    assert caught.value.status == 429


async def test_what_hangs_there_counts_in_the_requests_that_the_operator_allows_at_once(site: Site) -> None:
    await hangs(site)
    assert site.hung
    fleet = site.server.optimizer.ensemble_manager.fleet
    fleet.update("fast", limits=Limits(max_concurrent_requests=len(site.hung) + 1))
    site.server.dispatch(2000, model="fast")
    with pytest.raises(RequestError) as caught:
        site.server.dispatch(2001, model="fast")
    assert caught.value.code == "max_concurrent_requests"


async def test_the_alert_the_diagnosis_the_metrics_and_the_page_name_it(site: Site) -> None:
    await hangs(site, 20)
    assert ("silent_replica", "fast/1") in site.fired()
    telemetry = site.server.optimizer.telemetry
    labels = {"member": "fast", "replica": "fast/1"}
    assert telemetry.value(names.REPLICA_SILENT, labels) > 15.0
    await hangs(site, 10)
    assert ("ensemble_degradation", "") in site.fired()
    assert not {name for name, _ in site.fired()} & {"silent_member", "silent_member_serving"}
    assert telemetry.value(names.REPLICA_HEALTH, {**labels, "health": "out"}) == 1.0
    assert "Member fast is at fault: fast/1 is out of rotation, 2 of its 3 replicas serve" in text(
        site.server.optimizer
    )
    frame = await site.server.made.control.read(View.LIVE)
    (shown,) = [member for member in frame["members"] if member["model_id"] == "fast"]
    assert shown["replicas"] == {"fast/0": "healthy", "fast/1": "out", "fast/2": "healthy"}
    told = [change for change in frame["changes"] if change["kind"] == "replica"]
    assert [(change["what"], change["undo"]) for change in told] == [("replica fast/1: serving → out", None)]
    assert "      it comes back by itself" in text(site.server.optimizer).splitlines()


async def test_it_comes_back_by_probes_on_a_ramp_once_its_requests_are_over(site: Site) -> None:
    await hangs(site)
    for number in range(20):
        assert "fast/1" not in await site.second(4000 + number)
    site.deaf = ""
    for dispatch in site.hung:
        site.server.end(dispatch, Ending.FAILED, status=504, output_tokens=None, time_to_first_token_s=None)
    seen = []
    for number in range(120):
        await site.second(5000 + number)
        seen.append(site.standing)
    assert list(dict.fromkeys(seen)) == [Health.OUT, Health.RAMPING, Health.HEALTHY]
    beliefs = site.server.optimizer.ensemble_manager.beliefs
    assert beliefs["fast"].error_rate < 0.01


async def test_clients_that_give_up_before_its_patience_is_over_take_it_out_all_the_same(site: Site) -> None:
    """Each waits ten seconds and leaves."""
    site.deaf, left_after = "fast/1", 0
    for number in range(40):
        await site.second(6000 + number)
        now_s = site.server.clock.monotonic_s()
        for dispatch in [each for each in site.hung if now_s - each.started_s >= 10.0]:
            site.hung.remove(dispatch)
            site.server.end(dispatch, Ending.ABANDONED, output_tokens=0, time_to_first_token_s=None)
        left_after += site.standing is Health.HEALTHY
    assert left_after < 30


async def test_clients_that_come_seldom_and_leave_at_once_say_nothing_of_it(site: Site) -> None:
    for number in range(60):
        site.server.clock.advance(1.0)
        dispatches = [site.server.dispatch(7000 + 10 * number + each, model="fast") for each in range(3)]
        await site.server.optimizer.cycle.probe()
        for dispatch in dispatches:
            left = dispatch.replica_id == "fast/1"
            ending = Ending.ABANDONED if left else Ending.SUCCEEDED
            site.server.end(dispatch, ending, output_tokens=0 if left else 20)
    assert site.standing is Health.HEALTHY
