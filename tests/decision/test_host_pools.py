"""This machine's own load is the load of the pools that run on it, and of no other."""

from loadwise.decision.facts import EngineReading, HostReading, Policy
from loadwise.decision.step import Observation, State, step

BUSY = HostReading(read_s=1.0, cpu_usage_percent=100.0, memory_usage_percent=95.0)


def scores(host_pools: frozenset[str] | None) -> dict[str, float | None]:
    idle = EngineReading(replica_id="r", read_s=1.0, running_requests=0, waiting_requests=0)
    engines = {"local": (idle,), "remote": (idle,)}
    observation = Observation(now_s=1.0, engines=engines, host=BUSY, host_pools=host_pools)
    return {name: pool.score.value for name, pool in step(Policy(), State(), observation)[1].pools.items()}


def test_a_busy_gateway_does_not_make_a_remote_pool_look_loaded() -> None:
    found = scores(frozenset({"local"}))
    assert found["remote"] == 0.0
    assert found["local"] is not None
    assert found["local"] > 0.0


def test_without_a_word_every_pool_shares_the_host() -> None:
    found = scores(None)
    assert found["remote"] == found["local"]


def test_a_remote_pool_of_which_nothing_is_known_has_no_score() -> None:
    observation = Observation(now_s=1.0, engines={"remote": ()}, host=BUSY, host_pools=frozenset({"local"}))
    assert step(Policy(), State(), observation)[1].worst.score.value is None
