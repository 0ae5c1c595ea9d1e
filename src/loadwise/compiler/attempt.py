"""One build from start to verdict: make it, verify it, measure it, and say why it may not serve."""

from __future__ import annotations

import threading

from loadwise.compiler.examples import Arguments
from loadwise.compiler.parameters import ParameterKey
from loadwise.compiler.served import Build, BuildState, ServedModel
from loadwise.compiler.verify import MIN_GAIN, measure, verify
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import BuildBackend, BuildRequest, Built, Clock
from loadwise.settings import OptimizationConfig


class Attempt:
    """Makes builds with one backend; an attempt never raises."""

    def __init__(self, backend: BuildBackend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock

    def __call__(
        self, served: ServedModel, mode: str, config: OptimizationConfig, stop: threading.Event
    ) -> Build:
        """The build's outcome, whatever happens: promoted, failed or declined with its reason.

        One that `stop` ended is as if it had not been tried.
        """
        started_s = self._clock.monotonic_s()
        build = Build(mode=mode, state=BuildState.PROMOTED)
        try:
            self._make(served, build, config, stop)
        except BuildDeclinedError as error:
            build.state, build.cause, build.remedy = BuildState.DECLINED, str(error), error.remedy
        except BuildError as error:
            build.state, build.cause, build.remedy = BuildState.FAILED, str(error), error.remedy
        except Exception as error:  # noqa: BLE001 - a build may fail in any way; the original serves
            build.state, build.cause = BuildState.FAILED, f"{type(error).__name__}: {error}".split("\n")[0]
            build.remedy = "The original serves. force_recompile tries again."
        if stop.is_set() and build.built is None:
            build.state, build.cause = BuildState.ORIGINAL, "The build was stopped."
            build.remedy = "force_recompile starts it again."
        build.changed_s = self._clock.monotonic_s()
        if build.build_time_s is None:
            build.build_time_s = build.changed_s - started_s
        return build

    def _make(
        self, served: ServedModel, build: Build, config: OptimizationConfig, stop: threading.Event
    ) -> None:
        if stop.is_set():
            return
        key = ParameterKey(served.original)
        examples = served.examples.all()
        started_s = self._clock.monotonic_s()
        built = self._backend.build(
            BuildRequest(
                model=served.original,
                model_id=served.model_id,
                mode=build.mode,
                examples=examples,
                dynamic_shapes=served.dynamic_shapes,
                dynamic=build.mode == "default",
                timeout_s=config.build_timeout_sec,
                memory_bytes=config.build_memory_bytes,
                stop=stop,
            )
        )
        build.build_time_s = self._clock.monotonic_s() - started_s
        self._judge(served, build, built, examples)
        if not key.holds():
            raise BuildError("The model changed during its build.", remedy="force_recompile builds it anew.")
        build.built, build.key = built, key

    def _judge(self, served: ServedModel, build: Build, built: Built, examples: list[Arguments]) -> None:
        import torch

        taken = [(args, kwargs) for args, kwargs in examples if built.accepts(args, kwargs)]
        if not taken:
            raise BuildError("The build takes none of the calls seen.", remedy="Call force_recompile.")
        with torch.no_grad():
            verify(served.original, built.call, taken)
            build.timing = measure(served.original, built.call, taken[0], self._clock)
        if build.timing.compiled_s >= build.timing.original_s * (1 - MIN_GAIN):
            # Nothing went wrong: nobody need be told.
            raise BuildDeclinedError(
                f"The build is not faster ({build.timing.compiled_s * 1000:.3g} ms against "
                f"{build.timing.original_s * 1000:.3g} ms).",
                remedy="The original serves. Another compile_mode may do better.",
            )
