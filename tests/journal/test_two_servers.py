"""Two servers on one state folder: no applied configuration is lost, and the second goes on with both."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from loadwise.decision.facts import Ending, Principal
from loadwise.errors import ConflictError, RequestError
from loadwise.optimizer.config_store import ChangedError, ConfigStore
from loadwise.optimizer.tallies import Measure
from loadwise.ports import Configure, Feedback, View
from loadwise.settings import OptimizationConfig

HALF = {"block_share": 0.5, "block_sec": 10.0, "burn_in_sec": 0.0, "conversation_share": 0.5}
RAMP = {"mode": "ramp", "steps": [0.2, 0.6, 1.0], "step_sec": 60.0, "step_requests": 50}
ADMIN = Principal(scopes=frozenset({"feedback", "admin:write"}))
NONE = {"block_share": 0.0, "conversation_share": 0.0}


def applied(house: Any) -> Any:
    return house.made.optimizer.configurations


async def configure(house: Any, **changes: object) -> Any:
    return await house.made.control.apply(Configure(changes=changes))


def configured(house: Any) -> list[dict[str, Any]]:
    return [change for change in house.chronicle.changes() if change["kind"] == "configuration"]


class TestConfiguration:
    async def test_what_one_applies_the_other_follows_and_says_whose_it_is(self, make) -> None:
        first = await make()
        second = await make(clock=first.clock)
        await configure(first, hysteresis=0.06)
        await second.made.optimizer.cycle.tune()
        assert second.made.optimizer.config.hysteresis == 0.06
        told = (await second.made.control.read(View.STATUS))["configuration"]
        assert (told["version"], told["applied_by"]["this_process"]) == (2, False)
        assert told["applied_by"]["process"] > 0
        ours = (await first.made.control.read(View.STATUS))["configuration"]["applied_by"]
        assert ours == {**told["applied_by"], "this_process": True}
        (change,) = configured(second)
        assert change["reason"].startswith("operator by process ")
        assert change["undo_body"] == {"hysteresis": 0.05}

    async def test_a_change_on_top_of_an_older_one_is_refused_and_nothing_is_lost(self, make) -> None:
        first = await make()
        second = await make(clock=first.clock)
        await configure(first, hysteresis=0.06)
        with pytest.raises(ConflictError, match=r"process \d+ on .* as version 2; yours was not applied"):
            await configure(second, max_ensemble_size=4)
        assert second.made.optimizer.config.hysteresis == 0.06
        assert (await configure(second, max_ensemble_size=4))["version"] == 3
        await first.made.optimizer.cycle.tune()
        for house in (first, second, await make(clock=first.clock)):
            config = house.made.optimizer.config
            assert (config.hysteresis, config.max_ensemble_size) == (0.06, 4)
            assert applied(house).version == 3

    async def test_one_that_was_put_back_is_put_back_for_the_other_too(self, make) -> None:
        first = await make()
        second = await make(clock=first.clock)
        for _ in range(60):
            applied(first).count(0.5, within_objectives=True)
        await configure(first, hysteresis=0.06)
        await applied(second).follow()
        for _ in range(60):
            applied(first).count(0.5, within_objectives=False)
        await applied(first).judge()
        await applied(second).follow()
        assert second.made.optimizer.config.hysteresis == 0.05
        assert applied(second).put_back
        assert configured(second)[-1]["reason"].startswith("regression by process ")

    def test_a_server_with_other_settings_loses_nothing_of_ours(self, tmp_path: Path) -> None:
        bases = [OptimizationConfig(), OptimizationConfig(tuning_interval_sec=5.0)]
        stores = [ConfigStore(tmp_path, base) for base in bases]
        for store, base in zip(stores, bases, strict=True):
            store.save(base.changed({"max_ensemble_size": 5}), 2)
        assert [store.changed() for store in stores] == [None, None]
        for base in bases:
            assert ConfigStore(tmp_path, base).load() == (base.changed({"max_ensemble_size": 5}), 2)

    def test_a_file_of_an_older_version_is_read_and_gains_a_writer(self, tmp_path: Path) -> None:
        base = OptimizationConfig()
        store = ConfigStore(tmp_path, base)
        store.save(base.changed({"max_ensemble_size": 5}), 4)
        path = tmp_path / "optimization.json"
        older = {k: v for k, v in json.loads(path.read_text()).items() if k in {"base", "version", "config"}}
        path.write_text(json.dumps(older))
        again = ConfigStore(tmp_path, base)
        assert again.load() == (base.changed({"max_ensemble_size": 5}), 4)
        again.save(base.changed({"max_ensemble_size": 6}), 5)
        assert again.ours
        assert json.loads(path.read_text())["by"]["process"] > 0

    def test_many_processes_at_once_lose_no_update(self, tmp_path: Path) -> None:
        """Each raises one number by one, eight times; who is refused tries on top of the latest."""
        base = OptimizationConfig(metrics_history_size=1000)
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=raise_eight_times, args=(tmp_path,)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        config, version = ConfigStore(tmp_path, base).load()
        assert (config.metrics_history_size, version) == (1024, 25)


def raise_eight_times(folder: Path) -> None:
    store = ConfigStore(folder, OptimizationConfig(metrics_history_size=1000))
    config, version = store.load()
    done = 0
    while done < 8:
        try:
            following = config.changed({"metrics_history_size": config.metrics_history_size + 1})
            store.save(following, version + 1)
        except ChangedError as error:
            config, version = error.kept.config, error.kept.version
        else:
            config, version, done = following, version + 1, done + 1


# --- what they measured ----------------------------------------------------------------------------------


def experiments(house: Any) -> Any:
    return house.made.optimizer.recorder.experiments


def answers(house: Any) -> int:
    return sum(tally.answers for tally in experiments(house).switchback.tallies().values())


async def serve(house: Any, seconds: int, name: str) -> None:
    for number in range(seconds):
        house.clock.advance(1.0)
        for each in range(2):
            dispatch = house.dispatch(request_id=f"{name}{number}-{each}")
            house.end(dispatch, total_s=0.2)
        await house.made.optimizer.cycle.probe()


async def succeed(first: Any, second: Any) -> None:
    """The first ends, and the second takes over."""
    await first.close()
    second.clock.advance(10.0)
    second.journal.flush()
    await second.made.optimizer.cycle.probe()


def into_stratum(house: Any) -> None:
    """A few blocks pass, so that the first stratum that counts has begun."""
    house.clock.advance(50.0 - house.clock.wall_s() % 10.0 + 1.0)


class TestMeasured:
    async def test_requests_of_both_are_counted_once_when_the_second_takes_over(self, make) -> None:
        first = await make(experiment=HALF)
        into_stratum(first)
        await serve(first, 30, "a")
        second = await make(clock=first.clock, experiment=HALF)
        begun = answers(second)
        await serve(first, 20, "b")
        await serve(second, 25, "c")
        theirs, mine = answers(first), answers(second)
        assert min(theirs, mine) > begun > 0
        kinds = [experiments(house).conversations()["auto"] for house in (first, second)]
        await succeed(first, second)
        assert answers(second) == theirs + mine - begun
        seen = experiments(second).conversations()["auto"]
        for optimised in (True, False):
            counts = [kind.sums(Measure.ERRORS, optimised=optimised)[0] for kind in (*kinds, seen)]
            assert counts[2] > max(counts[:2])

    async def test_the_second_keeps_what_both_saw_for_the_next_start(self, make) -> None:
        first = await make(experiment=HALF)
        into_stratum(first)
        await serve(first, 30, "a")
        second = await make(clock=first.clock, experiment=HALF)
        await serve(first, 10, "b")
        await serve(second, 10, "c")
        await succeed(first, second)
        found = answers(second)
        await second.close()
        third = await make(clock=second.clock, experiment=HALF)
        assert answers(third) == found

    async def test_until_then_nothing_of_the_first_is_written_over(self, make) -> None:
        first = await make(experiment=HALF)
        into_stratum(first)
        await serve(first, 30, "a")
        second = await make(clock=first.clock, experiment=HALF)
        await serve(second, 10, "c")
        await serve(first, 10, "b")
        kept = answers(first)
        await second.close()
        await first.close()
        third = await make(clock=first.clock, experiment=HALF)
        assert answers(third) == kept

    async def test_a_rollout_that_the_first_took_back_is_back_for_the_second(self, make) -> None:
        config = {"experiment": NONE, "rollout": RAMP}
        first = await make(**config)
        first.answer()
        await first.made.optimizer.cycle.probe()
        second = await make(clock=first.clock, **config)
        second.answer()
        for number in range(300):
            dispatch = first.dispatch(request_id=f"f{number}")
            failed = not dispatch.control and number % 2 == 0
            first.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
        await first.made.optimizer.cycle.probe()
        assert any(not second.answer(request_id=f"s{n}").control for n in range(40))
        await succeed(first, second)
        shown = experiments(second).rollouts.as_json(second.clock.monotonic_s())[0]
        assert (shown["share"], shown["harm"]) == (0.0, "errors_burning")
        assert {second.answer(request_id=f"t{n}").control for n in range(40)} == {True}

    async def test_a_rollout_at_one_step_adds_up_what_both_saw(self, make) -> None:
        config = {"experiment": NONE, "rollout": RAMP}
        first = await make(**config)
        await serve(first, 5, "a")
        second = await make(clock=first.clock, **config)
        await serve(first, 5, "b")
        await serve(second, 5, "c")
        await succeed(first, second)
        (course,) = experiments(second).rollouts.kept(0.0)
        seen = sum(row.amount.requests for row in course.rows if row.measure is Measure.ERRORS)
        assert seen == 30

    async def test_feedback_that_the_first_took_counts_for_the_second(self, make) -> None:
        first = await make(experiment={**HALF, "block_share": 0.0})
        second = await make(clock=first.clock, experiment={**HALF, "block_share": 0.0})
        dispatch = first.answer(model="auto")
        said = Feedback(request_id=dispatch.request.request_id, score=0.0, source="judge", principal=ADMIN)
        told = await first.made.control.apply(said)
        await succeed(first, second)
        quality = second.made.optimizer.ensemble_manager.beliefs[told["member"]].quality
        assert quality == pytest.approx(told["quality"])
        found = experiments(second).conversations()["auto"]
        assert found.sums(Measure.SCORES, optimised=not dispatch.control) == (1, 0.0)

    async def test_feedback_counts_once_whether_given_before_or_after_the_second_read_it(self, make) -> None:
        config = {"experiment": {**HALF, "block_share": 0.0}}
        first = await make(**config)
        second = await make(clock=first.clock, **config)
        dispatch = first.answer(model="auto")
        said = Feedback(request_id=dispatch.request.request_id, score=1.0, source="judge", principal=ADMIN)
        await first.close()
        second.clock.advance(10.0)
        second.journal.flush()
        with pytest.raises(RequestError, match="Give it again in a second") as refusal:
            await second.made.control.apply(said)
        assert refusal.value.status == 503
        await second.made.optimizer.cycle.probe()
        told = await second.made.control.apply(said)
        assert told["status"] == "recorded"
        await second.made.optimizer.cycle.probe()
        found = experiments(second).conversations()["auto"]
        assert found.sums(Measure.SCORES, optimised=not dispatch.control) == (1, 1.0)

    async def test_a_second_that_ends_before_its_next_look_keeps_what_both_saw(self, make) -> None:
        first = await make(experiment=HALF)
        into_stratum(first)
        await serve(first, 30, "a")
        second = await make(clock=first.clock, experiment=HALF)
        begun = answers(second)
        await serve(first, 10, "b")
        await serve(second, 10, "c")
        both = answers(first) + answers(second) - begun
        await first.close()
        second.clock.advance(10.0)
        second.journal.flush()
        await second.close()
        third = await make(clock=second.clock, experiment=HALF)
        assert answers(third) == both

    async def test_a_second_with_another_experiment_keeps_its_own_blocks_and_none_of_the_first(
        self, make
    ) -> None:
        other = {**HALF, "seed": 5}
        first = await make(experiment=HALF)
        second = await make(clock=first.clock, experiment=other)
        into_stratum(first)
        for number in range(15):
            await serve(first, 1, f"a{number}-")
            await serve(second, 2, f"c{number}-")
        seen = experiments(second).switchback.tallies()
        await succeed(first, second)
        await second.close()
        third = await make(clock=second.clock, experiment=other)
        kept = experiments(third).switchback.tallies()
        assert len(seen) > 1
        assert {number: tally.answers for number, tally in kept.items()} == {
            number: tally.answers for number, tally in seen.items()
        }
