"""Which members are silent now: requests in flight, and no token by anything that would show one."""

from __future__ import annotations

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import GENERATED
from loadwise.decision.silence import Silence
from loadwise.optimizer.director import EnsembleDirector
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.sensing import EngineReadings
from loadwise.ports import Dispatch


def silences(
    director: EnsembleDirector, readings: EngineReadings, recorder: Recorder, now_s: float
) -> tuple[Silence, ...]:
    """Members that have had requests for a while, and no token since."""
    ensemble = director.ensemble

    def shows_tokens(dispatch: Dispatch) -> bool:
        """Of other requests nobody can see whether tokens come before they end."""
        asked = dispatch.request
        return asked.endpoint in GENERATED and readings.shows_tokens(dispatch.replica_id, stream=asked.stream)

    found = []
    for member_id, (began_s, prompt_tokens) in director.in_flight.longest(shows_tokens).items():
        heard_s = _heard_s(director, readings, recorder, member_id)
        belief = ensemble.beliefs.get(member_id)
        out = belief is not None and belief.health is Health.OUT
        found.append(
            Silence(
                member_id=member_id,
                seconds=now_s - (began_s if heard_s is None else max(began_s, heard_s)),
                isolated=out or not ensemble.fleet.is_active(member_id),
                prompt_tokens=prompt_tokens,
            )
        )
    return tuple(found)


def _heard_s(
    director: EnsembleDirector, readings: EngineReadings, recorder: Recorder, member_id: str
) -> float | None:
    """When the member last gave tokens: by its engines' own figures, and by the answers that ended."""
    heard, fleet = [recorder.last_token_s.get(member_id)], director.ensemble.fleet
    if member_id in fleet:
        heard += [readings.last_token_s(replica_id) for replica_id in fleet.parts(member_id).engines]
    return max((second for second in heard if second is not None), default=None)
