"""loadwise's optimizer under the import path that Aphrodite Engine's description gives it."""

from loadwise.compiler import ModelCompiler
from loadwise.decision.load import ServerLoadMetrics
from loadwise.optimizer.ensemble_manager import ModelEnsembleManager
from loadwise.optimizer.model_manager import DynamicModelManager
from loadwise.optimizer.parameter_tuner import LoadBasedParameterTuner
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.settings import OptimizationConfig

__all__ = [
    "DynamicModelManager",
    "LoadBasedParameterTuner",
    "ModelCompiler",
    "ModelEnsembleManager",
    "OptimizationConfig",
    "ServerLoadMetrics",
    "ServerSideOptimizer",
]
