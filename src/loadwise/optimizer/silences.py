"""Which replicas are silent now: requests in flight, and no token by anything that would show one."""

from __future__ import annotations

from loadwise.decision.beliefs import NO_REPLICAS, Belief, Health
from loadwise.decision.facts import GENERATED
from loadwise.decision.replicas import is_out
from loadwise.decision.silence import Silence
from loadwise.optimizer.director import EnsembleDirector
from loadwise.optimizer.recorder import Recorder
from loadwise.optimizer.sensing import EngineReadings
from loadwise.ports import Dispatch


def silences(
    director: EnsembleDirector, readings: EngineReadings, recorder: Recorder, now_s: float
) -> tuple[Silence, ...]:
    """Replicas that have had requests for a while, and no token since."""

    def shows_tokens(dispatch: Dispatch) -> bool:
        """Of other requests nobody can see whether tokens come before they end."""
        asked = dispatch.request
        return asked.endpoint in GENERATED and readings.shows_tokens(dispatch.replica_id, stream=asked.stream)

    flights, found = director.in_flight, []
    for (member_id, replica_id), (oldest_s, prompt_tokens) in flights.longest(shows_tokens).items():
        # By its engine's own figures, and by the answers that ended.
        signs = readings.last_token_s(replica_id), recorder.last_sign_s.get(replica_id)
        heard_s = max([second for second in signs if second is not None], default=float("-inf"))
        kinds = [kind for kind in (True, False) if readings.shows_tokens(replica_id, stream=kind)]
        # Clients that gave up waited as well.
        waited = [flights.waited_s(replica_id, stream=kind, heard_s=heard_s, now_s=now_s) for kind in kinds]
        serving = _serving(director, member_id)
        belief = director.ensemble.beliefs.get(member_id)
        found.append(
            Silence(
                member_id=member_id,
                seconds=max([now_s - max(oldest_s, heard_s), *waited]),
                isolated=not serving or (belief is not None and is_out(belief.replicas, replica_id)),
                prompt_tokens=prompt_tokens,
                replica_id=replica_id,
                serving=serving,
            )
        )
    return tuple(found)


def _serving(director: EnsembleDirector, member_id: str) -> int:
    """How many of the member's replicas get requests."""
    belief = director.ensemble.beliefs.get(member_id)
    if not director.ensemble.fleet.is_active(member_id) or (belief and belief.health is Health.OUT):
        return 0
    return _in_rotation(belief)


def _in_rotation(belief: Belief | None) -> int:
    standings = NO_REPLICAS if belief is None else belief.replicas
    return sum(each.health is not Health.OUT for each in standings.values()) or 1
