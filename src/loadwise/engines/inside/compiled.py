"""What an engine's worker processes compiled: in what time, and whether it came from a cache.

Engines compile in processes of their own, which tell their API servers nothing of it. As a general plugin
this gives their workers one method more, which reads counters that are there anyway; it runs when it is asked
for, once, over the engine's own way of asking its workers. Every process of an engine imports this.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

METHOD: Final = "loadwise_compiled"
# An engine that starts may be long at its first requests.
PATIENCE_S: Final = 60.0
# The engine's own counters, where it has them.
_LOADED: Final = ("num_compiled_artifacts_loaded", "num_aot_artifacts_loaded")
_COMPILED: Final = ("num_compiled_artifacts_saved", "num_aot_compiles")
_log = logging.getLogger(__name__)
_installed: set[str] = set()


def vllm() -> None:
    """The entry point `vllm.general_plugins`."""
    install("vllm")


def aphrodite() -> None:
    """The entry point `aphrodite.general_plugins`."""
    install("aphrodite")


def install(engine: str) -> None:
    """The workers of this process can be asked; whatever goes wrong, the engine starts."""
    try:
        base = importlib.import_module(f"{engine}.v1.worker.worker_base").WorkerBase
        setattr(base, METHOD, lambda worker: told(engine, worker))
        _installed.add(engine)
    except Exception as error:  # noqa: BLE001 - an engine of another form has no such workers
        _log.debug("Workers of %s cannot be asked what they compiled: %r", engine, error)


def told(engine: str, worker: Any) -> dict[str, float]:
    """What this process compiled so far, as far as the engine and torch count it."""
    try:
        found = {
            "engine_seconds": float(getattr(worker.compilation_config, "compilation_time", 0.0)),
            **_of_engine(sys.modules.get(f"{engine}.compilation.counter")),
            **_of_torch(sys.modules.get("torch._dynamo.utils")),
        }
    except Exception as error:  # noqa: BLE001 - a worker answers its engine, whatever is wrong with ours
        _log.debug("What was compiled cannot be read: %r", error)
        return {}
    return found


def _of_engine(module: Any) -> dict[str, float]:
    counter = getattr(module, "compilation_counter", None)
    return {
        "engine_loaded": float(sum(getattr(counter, name, 0) for name in _LOADED)),
        "engine_compiled": float(sum(getattr(counter, name, 0) for name in _COMPILED)),
    }


def _of_torch(module: Any) -> dict[str, float]:
    if module is None:
        return {}
    inductor = module.counters["inductor"]
    return {
        "torch_seconds": float(module.calculate_time_spent()["total_wall_time"]),
        "torch_loaded": float(inductor["fxgraph_cache_hit"]),
        "torch_compiled": float(inductor["fxgraph_cache_miss"]),
    }


async def asked(engine: str, client: Any) -> Mapping[str, Any]:
    """What the engine's workers say, as figures of `compilation`; {} where they cannot be asked."""
    ask = getattr(client, "collective_rpc", None)
    if engine not in _installed or ask is None:
        return {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            answers = await ask(METHOD)
    except Exception as error:  # noqa: BLE001 - serving does not depend on it
        _log.warning("The engine's workers do not say what they compiled: %r", error)
        return {}
    return figures([answer for answer in answers if isinstance(answer, dict)])


def figures(answers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Seconds of the slowest worker, graphs of all, whether all came from a cache; None: nobody says."""
    times = [each.get("engine_seconds") or each.get("torch_seconds") or 0.0 for each in answers]
    seconds = max(times, default=0.0)
    loaded, compiled = _graphs(answers, "loaded"), _graphs(answers, "compiled")
    return {
        "compile_seconds": round(seconds, 3) or None,
        "graphs_loaded": loaded if loaded or compiled else None,
        "graphs_compiled": compiled if loaded or compiled else None,
        "cache_hit": not compiled if loaded or compiled else None,
    }


def _graphs(answers: Sequence[Mapping[str, float]], what: str) -> int:
    """The engine's own count where it counts, else torch's: an engine's graph is several of torch's."""
    engines = sum(each.get(f"engine_{kind}", 0.0) for each in answers for kind in ("loaded", "compiled"))
    source = "engine" if engines else "torch"
    return int(sum(each.get(f"{source}_{what}", 0.0) for each in answers))
