"""Limits hold over all processes that share a folder, and across a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loadwise.decision.limits import NO_LIMITS
from loadwise.errors import LoadwiseError
from loadwise.logs import get_logger
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.optimizer.shared_minutes import SharedMinutes
from loadwise.settings import ModelSettings, Settings, UpstreamSettings

log = get_logger(__name__)


@contextmanager
def shared_limits(settings: Settings, optimizer: ServerSideOptimizer) -> Iterator[None]:
    """Members' limits are counted with the processes that share `metrics_dir`, or else `state_dir`.

    Where that folder cannot be used this process counts alone, and says so.
    """
    terms = optimizer.ensemble_manager.terms
    said: dict[str, ModelSettings | UpstreamSettings] = {**settings.models, **settings.upstreams}
    if any(each.limits.limits() is not NO_LIMITS for each in said.values()):
        folder = (settings.metrics_dir or settings.state_dir) / "limits"
        try:
            now_s = optimizer.clock.monotonic_s()
            terms.share(SharedMinutes(folder, now_s, {name: _key(name, one) for name, one in said.items()}))
        except (OSError, LoadwiseError) as error:
            log.warning("limits_counted_alone", folder=str(folder), reason=str(error))
    try:
        yield
    finally:
        terms.close()


def _key(name: str, said: ModelSettings | UpstreamSettings) -> str:
    """What a member is, beyond its name: two servers may give one name to different models."""
    if isinstance(said, ModelSettings):
        return f"{name} {said.path.resolve()}"
    return " ".join([name, said.model or "", *sorted(str(url) for url in (said.url, *said.replicas))])
