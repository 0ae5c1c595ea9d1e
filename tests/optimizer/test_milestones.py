"""Each end of a build and each move of a rollout is told once, with its cause."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from loadwise.decision.facts import Ending
from loadwise.optimizer.milestones import Milestones
from loadwise.optimizer.rollouts import Rollouts
from loadwise.optimizer.undoing import changes
from loadwise.settings import OptimizationConfig


def stats(state: str, *, number: int = 1, cause: str = "", failures: int = 0, **more: Any) -> dict[str, Any]:
    build = {"state": state, "id": f"m/default/{number}", "cause": cause, "failures": failures, **more}
    return {"m": {"builds": {"default": build}}}


def told(*lives: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told while a compiler's builds go through these states, each looked at twice."""
    compiler: Any = SimpleNamespace(compilation_stats={})
    milestones = Milestones(compiler, Rollouts(OptimizationConfig()))
    found = []
    for life in lives:
        compiler.compilation_stats = life
        found += [*milestones.since(1.0), *milestones.since(2.0)]
    return [(event.became, event.reason) for event in found]  # type: ignore[union-attr]


def test_promotion_failure_and_refusal_are_told_once_with_their_cause() -> None:
    building = stats("building")
    assert told(building, stats("promoted", speedup=1.5)) == [
        ("promoted", "1.50 times as fast as the original")
    ]
    assert told(building, stats("failed", cause="no compiler", failures=1)) == [("failed", "no compiler")]
    assert told(building, stats("declined", cause="not faster")) == [("declined", "not faster")]
    assert told(stats("promoted", kept=True)) == [("promoted", "kept from an earlier start")]
    assert told(building, stats("original", cause="The build was stopped.")) == []


def test_a_build_that_served_and_does_no_more_was_reverted() -> None:
    wrong = stats("failed", cause="It answers differently.", failures=1)
    assert told(stats("promoted"), wrong)[-1] == ("reverted", "It answers differently.")


def test_a_rebuild_that_failed_beside_one_that_serves_is_a_failure() -> None:
    beside = stats("promoted", cause="out of memory", failures=1)
    assert told(stats("promoted"), beside)[-1] == ("failed", "out of memory")
    assert told(stats("promoted"), stats("promoted", number=2))[-1][0] == "promoted"


async def test_a_rollout_that_moves_is_in_the_changes_with_its_reason(make: Any) -> None:
    ramp = {"mode": "ramp", "steps": [0.2, 1.0], "step_sec": 60.0, "step_requests": 50}
    server = make(
        capacity=1000,
        rollout=ramp,
        experiment={"block_share": 0.0, "conversation_share": 0.0},
    )
    await server.optimizer.cycle.tune()
    server.optimizer.director.running = True
    for number in range(300):
        dispatch = server.dispatch(number)
        failed = not dispatch.control and number % 2 == 0
        server.end(dispatch, Ending.FAILED if failed else Ending.SUCCEEDED, status=500 if failed else 200)
        if number == 0:
            await server.optimizer.cycle.probe()
    await server.optimizer.cycle.probe()
    shown = changes(server.optimizer)[0]
    assert shown["what"] == "rollout of auto: 20% → 0% optimised"
    assert (shown["kind"], shown["reason"], shown["undo"]) == ("rollout", "errors_burning", None)
    assert shown["rests"] == "nothing is optimised there now"
