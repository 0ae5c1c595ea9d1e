"""`ServedModel`: what callers hold. It answers with the original until a build has been promoted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loadwise.compiler.build import Build, BuildState
from loadwise.compiler.examples import Examples, signature
from loadwise.compiler.parameters import ParameterKey, parameters_digest
from loadwise.compiler.usage import Usage
from loadwise.ports import Built, Judge, Recipe


class ServedModel:
    """Answers as the model it was made from does; everything but calls goes to that model.

    The promoted build serves calls it was made for, while parameters are those it was made with and the
    model is in evaluation mode; its answers carry no gradients. All else is the original's.
    """

    def __init__(
        self,
        model: Any,
        model_id: str,
        examples: Examples,
        usage: Usage,
        on_first_call: Callable[[ServedModel], None],
    ) -> None:
        self.original = model
        self.model_id = model_id
        self.examples = examples
        self.dynamic_shapes: Any = None
        self.recipe: Recipe | None = None
        self.judge: Judge | None = None
        # Called on the thread that builds, for what torch keeps per thread.
        self.prepare: Callable[[], None] = lambda: None
        # Calls of every size that will be served, which a build has answered before it serves.
        self.buckets: Callable[[], Iterable[tuple[Any, ...]]] = tuple
        # Calling it twice with the same arguments leaves them as calling it once.
        self.repeatable = False
        self.builds: dict[str, Build] = {}
        self.usage = usage
        # Builds that wait or run, by mode.
        self.pending: dict[str, Build] = {}
        self.cause = ""
        self.remedy = ""
        # Replaced as a whole, so that a call sees either the old build or the new one.
        self.active: Build | None = None
        self._on_first_call = on_first_call
        self._digest: tuple[ParameterKey, str] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer; whatever the model raises is raised."""
        self.usage.calls += 1
        build = self.active
        # Another thread may retire the build at any moment: what it is made of is read once.
        built = None if build is None else build.built
        if build is not None and built is not None and self._fits(build, built, args, kwargs):
            try:
                return self._built_answer(build, built, args, kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a build raises, the original can answer
                first_line = str(error).split("\n")[0]
                self.retire(build, BuildState.FAILED, f"{type(error).__name__} while serving: {first_line}")
        if self.examples.learn(args, kwargs):
            self._on_first_call(self)
        return self.original(*args, **kwargs)

    def _built_answer(
        self, build: Build, built: Built, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        watch = build.watch
        if watch is None or not watch.took():
            return built.call(*args, **kwargs)
        answer, wrong = watch.compare(self.original, built.call, args, kwargs)
        if wrong is not None:
            self.retire(build, BuildState.FAILED, wrong)
        return answer

    def prepared(
        self, work: Callable[[ServedModel, threading.Event], None]
    ) -> Callable[[threading.Event], None]:
        """`work` on this model, by a thread that computes as suits it."""

        def run(stop: threading.Event) -> None:
            self.prepare()
            work(self, stop)

        return run

    def digest(self) -> str:
        """SHA-256 of the parameters and buffers as they are now; counted again only after a change."""
        if self._digest is None or not self._digest[0].holds():
            self._digest = ParameterKey(self.original), parameters_digest(self.original)
        return self._digest[1]

    def __getattr__(self, name: str) -> Any:
        # Only reached for what this object does not have itself.
        if "original" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.original, name)

    def _fits(self, build: Build, built: Built, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        key = build.key
        if key is None:
            return False
        if not key.holds():
            # Training comes and goes; other changes are for good, and the build with them.
            if not key.training:
                self.retire(build, BuildState.ORIGINAL, "The model's parameters changed after the build.")
            return False
        if _needs_original(args, kwargs):
            return False
        return built.accepts(args, kwargs) or self._missed(build, args, kwargs)

    def _missed(self, build: Build, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """False: the original answers. A storm of such calls retires the build."""
        if build.watch is not None:
            storm = build.watch.miss(shown_sizes(signature((args, dict(kwargs)))))
            if storm is not None:
                self.retire(build, BuildState.FAILED, storm)
                self.examples.prefer(args, kwargs)
        return False

    def retire(self, build: Build, state: BuildState, cause: str) -> None:
        """The build no longer serves, for the reason given."""
        build.state, build.cause = state, cause
        build.remedy = f"force_recompile({self.model_id!r}) builds it anew."
        build.built = build.key = None
        if self.active is build:
            self.active = None


def shown_sizes(kind: Any) -> str:
    """The sizes of the tensors in a signature, as people read them: "4x8, 4"."""
    if isinstance(kind, tuple) and kind[:1] == ("tensor",):
        return "x".join(map(str, kind[1])) or "scalar"
    parts = [shown_sizes(part) for part in kind] if isinstance(kind, tuple) else []
    return ", ".join(part for part in parts if part)


def _needs_original(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether gradients for an input, or mixed precision, are asked of this call."""
    torch = sys.modules["torch"]
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return True
    if not torch.is_grad_enabled():
        return False
    return any(getattr(value, "requires_grad", False) for value in (*args, *kwargs.values()))
