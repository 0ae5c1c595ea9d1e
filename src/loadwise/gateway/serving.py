"""The origin's serving classes: endpoints and middleware over a mixin, the mixin over the optimizer."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from loadwise.clock import SystemClock
from loadwise.decision.facts import ANONYMOUS, Policy, Principal
from loadwise.errors import RequestError
from loadwise.gateway.preferences import preference
from loadwise.gateway.tuning import tuned
from loadwise.logs import get_logger
from loadwise.ports import (
    AddModel,
    Clock,
    Command,
    Configure,
    Control,
    Feedback,
    JsonObject,
    Recompile,
    Start,
    Stop,
    View,
)

log = get_logger(__name__)


class RequestOptimizer(Protocol):
    """What the middleware needs of a `ServerSideOptimizer`."""

    @property
    def parameter_tuner(self) -> Any:
        """Has `get_current_strategy()`: a strategy with `parameters`, or None."""
        ...

    @property
    def tuning_policy(self) -> Policy | None:
        """The rules by which requests are tuned; None while optimisation is stopped."""
        ...

    async def optimize_model_for_request(self, model: Any, request_context: Any) -> Any:
        """The model that shall answer: a member of the ensemble, or `model` with its promoted build."""
        ...

    def record_request_performance(self, model_id: str, latency_ms: float, success: bool) -> None:
        """Learns how a request went."""
        ...


class OptimizationServingMixin:
    """The handlers behind `/v1/optimization/*`, over a `Control`; mix it in, or use it as it is.

    Without a control its handlers answer 503; without an optimizer the middleware changes nothing.
    """

    control: Control | None = None
    optimizer: RequestOptimizer | None = None

    def __init__(self, control: Control | None = None, optimizer: RequestOptimizer | None = None) -> None:
        self.control = control
        self.optimizer = optimizer

    def _controls(self) -> Control:
        if self.control is None:
            raise RequestError(
                "Optimisation is not set up here; call setup_optimization_serving(app, engine).",
                status=503,
                kind="server_error",
                code="not_set_up",
            )
        return self.control

    async def _apply(self, command: Command) -> JsonObject:
        return await self._controls().apply(command)

    async def _read(self, view: View, **options: Any) -> JsonObject:
        return await self._controls().read(view, **options)

    async def configure_optimization(self, changes: Mapping[str, Any], dry_run: bool = False) -> JsonObject:
        """Settings are changed as a whole, or with `dry_run` only compared.

        Raises `ConfigurationError` naming field, value and range; nothing is changed then.
        """
        return await self._apply(Configure(changes=changes, dry_run=dry_run))

    async def start_optimization(self) -> JsonObject:
        """Optimisation runs."""
        return await self._apply(Start())

    async def stop_optimization(self) -> JsonObject:
        """Optimisation is stopped; serving goes on with nothing touched."""
        return await self._apply(Stop())

    async def get_optimization_status(self) -> JsonObject:
        """What runs, with its configuration and version."""
        return await self._read(View.STATUS)

    async def get_diagnosis(self) -> str:
        """What burns, where time goes, who is at fault and what was changed, as plain text."""
        return str((await self._read(View.DIAGNOSIS))["text"])

    async def get_live_values(self) -> JsonObject:
        """The page's values at this moment."""
        return await self._read(View.LIVE)

    async def get_timeline(self) -> JsonObject:
        """What happened over time, for the page's charts."""
        return await self._read(View.TIMELINE)

    async def get_load_metrics(self) -> JsonObject:
        """The server's load, measured now."""
        return await self._read(View.METRICS)

    async def get_ensemble_status(self) -> JsonObject:
        """Strategy, members with weights and performance, and those that stand by."""
        return await self._read(View.ENSEMBLE)

    async def get_performance_report(self, export_file: bool = False) -> JsonObject:
        """The report with grade and recommendations, written to the report folder with `export_file`."""
        return await self._read(View.REPORT, export_file=export_file)

    async def get_dashboard(self) -> JsonObject:
        """The dashboard's live values."""
        return await self._read(View.DASHBOARD)

    async def add_model_to_ensemble(self, model_id: str, initial_weight: float = 1.0) -> JsonObject:
        """A model of the catalogue is in the ensemble.

        Raises `UnknownNameError` or `CapacityError`.
        """
        return await self._apply(AddModel(model_id=model_id, initial_weight=initial_weight))

    async def give_feedback(
        self, request_id: str, score: float, source: str, principal: Principal = ANONYMOUS
    ) -> JsonObject:
        """An answer's score (0..1) counts for its member, once per request and source.

        Raises `ConfigurationError` for wrong values, `RequestError` where the score cannot count.
        """
        return await self._apply(
            Feedback(request_id=request_id, score=score, source=source, principal=principal)
        )

    async def force_recompile(self, model_id: str | None = None) -> JsonObject:
        """A rebuild of one compiled model, or of all, has begun; raises `UnknownNameError`."""
        return await self._apply(Recompile(model_id=model_id))


def create_optimized_request_context(
    model_name: str,
    request_id: str,
    user_preferences: Mapping[str, Any] | None = None,
    load_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What selection needs to know of a request.

    `user_preferences` maps "quality" and "speed" to low, medium, high or a number in 0..1; they are
    also there as numbers, None without one. Raises `RequestError` (a wrong preference) with its name.
    """
    wishes = dict(user_preferences or {})
    numbers = {
        name: preference(value, name) for name, value in wishes.items() if name in ("quality", "speed")
    }
    return {
        "model_name": model_name,
        "request_id": request_id,
        "user_preferences": wishes,
        "quality_preference": numbers.get("quality"),
        "speed_preference": numbers.get("speed"),
        "load_info": dict(load_info or {}),
    }


class OptimizationMiddleware:
    """Optimises requests on their way to a processing function; when that fails, serving goes on without."""

    def __init__(self, optimization_mixin: OptimizationServingMixin, clock: Clock | None = None) -> None:
        self.optimization_mixin = optimization_mixin
        self._clock = clock or SystemClock()

    async def process_request(
        self, model: Any, request_data: Any, processing_function: Callable[[Any, Any], Any]
    ) -> Any:
        """What `processing_function(model, request_data)` returns, awaited where it can be.

        The function gets the optimised model and a tuned copy of the request; its outcome is recorded
        once, except when the request is cancelled. Its exceptions are raised as they are.
        """
        context = _context(model, request_data)
        chosen, request = await self._optimized(model, request_data, context)
        began_s = self._clock.monotonic_s()
        try:
            result = processing_function(chosen, request)
            if inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError:
            # The client left: this says nothing about the model.
            raise
        except Exception:
            self._record(context, began_s, success=False)
            raise
        self._record(context, began_s, success=True)
        return result

    async def _optimized(self, model: Any, request: Any, context: dict[str, Any]) -> tuple[Any, Any]:
        optimizer = self.optimization_mixin.optimizer
        if optimizer is None:
            return model, request
        try:
            chosen = await optimizer.optimize_model_for_request(model, context)
            strategy = optimizer.parameter_tuner.get_current_strategy()
            return chosen, tuned(
                request, strategy, optimizer.tuning_policy, left_alone="left_alone" in context
            )
        except Exception:
            log.exception("optimizer_failed_request_goes_on_without_it", request_id=context["request_id"])
            _survived(optimizer)
            return model, request

    def _record(self, context: Mapping[str, Any], began_s: float, *, success: bool) -> None:
        optimizer = self.optimization_mixin.optimizer
        if optimizer is None:
            return
        latency_ms = (self._clock.monotonic_s() - began_s) * 1000.0
        # The optimizer notes in the context which member it chose.
        model_id = context.get("selected_model") or context["model_name"]
        try:
            optimizer.record_request_performance(model_id, latency_ms, success)
        except Exception:
            log.exception("outcome_not_recorded", request_id=context["request_id"])
            _survived(optimizer)


def _survived(optimizer: Any) -> None:
    """The error is counted where the optimizer counts errors: one of another's making may not."""
    cycle = getattr(optimizer, "cycle", None)
    if cycle is not None:
        cycle.survived("middleware")


def _context(model: Any, request: Any) -> dict[str, Any]:
    values: Mapping[str, Any] = request if isinstance(request, Mapping) else {}
    name = values.get("model") or getattr(model, "model_id", None) or type(model).__name__
    request_id = values.get("request_id") or f"req-{uuid.uuid4().hex}"
    return create_optimized_request_context(str(name), str(request_id), values.get("user_preferences"))
