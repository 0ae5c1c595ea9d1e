"""loadwise keeps an LLM server fast and good while its load changes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadwise.app import setup_optimization_serving
    from loadwise.compiler import ModelCompiler
    from loadwise.decision.load import ServerLoadMetrics
    from loadwise.errors import (
        BuildError,
        CapacityError,
        ConfigurationError,
        EngineError,
        LoadwiseError,
        MissingExtraError,
        RequestError,
        UnknownNameError,
    )
    from loadwise.gateway.serving import (
        OptimizationMiddleware,
        OptimizationServingMixin,
        create_optimized_request_context,
    )
    from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
    from loadwise.optimizer.model_manager import DynamicModelManager
    from loadwise.optimizer.parameter_tuner import LoadBasedParameterTuner
    from loadwise.optimizer.selection import Selection
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
    from loadwise.settings import OptimizationConfig

# Where each public name lives; it is imported when it is first asked for.
_HOMES = {
    "BuildError": "loadwise.errors",
    "CapacityError": "loadwise.errors",
    "ConfigurationError": "loadwise.errors",
    "DynamicModelManager": "loadwise.optimizer.model_manager",
    "EngineError": "loadwise.errors",
    "LoadBasedParameterTuner": "loadwise.optimizer.parameter_tuner",
    "LoadwiseError": "loadwise.errors",
    "MissingExtraError": "loadwise.errors",
    "ModelCompiler": "loadwise.compiler",
    "ModelEnsembleManager": "loadwise.optimizer.ensemble_manager",
    "OptimizationConfig": "loadwise.settings",
    "OptimizationMiddleware": "loadwise.gateway.serving",
    "OptimizationServingMixin": "loadwise.gateway.serving",
    "RequestError": "loadwise.errors",
    "Selection": "loadwise.optimizer.selection",
    "ServerLoadMetrics": "loadwise.decision.load",
    "ServerSideOptimizer": "loadwise.optimizer.server_side_optimizer",
    "UnknownNameError": "loadwise.errors",
    "create_optimized_request_context": "loadwise.gateway.serving",
    "setup_optimization_serving": "loadwise.app",
}

__version__ = "0.1.0"
__all__ = [
    "BuildError",
    "CapacityError",
    "ConfigurationError",
    "DynamicModelManager",
    "EngineError",
    "LoadBasedParameterTuner",
    "LoadwiseError",
    "MissingExtraError",
    "ModelCompiler",
    "ModelEnsembleManager",
    "OptimizationConfig",
    "OptimizationMiddleware",
    "OptimizationServingMixin",
    "RequestError",
    "Selection",
    "ServerLoadMetrics",
    "ServerSideOptimizer",
    "UnknownNameError",
    "create_optimized_request_context",
    "setup_optimization_serving",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
