"""loadwise's serving layer under the import path that Aphrodite Engine's description gives it."""

from loadwise.app import setup_optimization_serving
from loadwise.gateway.serving import (
    OptimizationMiddleware,
    OptimizationServingMixin,
    create_optimized_request_context,
)

__all__ = [
    "OptimizationMiddleware",
    "OptimizationServingMixin",
    "create_optimized_request_context",
    "setup_optimization_serving",
]
