"""What the torch engine hands a compiler: its step, how to make it again, and who judges builds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loadwise.engines.held_out import held_out
from loadwise.ports import JsonObject, Judge, Paced, Recipe
from loadwise.torch_engine.recipe import StepRecipe

if TYPE_CHECKING:
    from loadwise.torch_engine.loading import LoadedModel
    from loadwise.torch_engine.runner import Runner
    from loadwise.torch_engine.texts import Texts


class CompileStep(Protocol):
    """What the engine asks of a compiler; `ModelCompiler.compile_model` is one."""

    def __call__(
        self,
        model: Any,
        model_id: str,
        *,
        examples: Callable[[], Sequence[tuple[Any, ...]]],
        dynamic_shapes: Any,
        recipe: Recipe,
        repeatable: bool,
        judge: Judge,
        prepare: Callable[[], None],
        buckets: Callable[[], Iterable[tuple[Any, ...]]],
    ) -> Callable[..., Any]:
        """A callable that serves the model, and a faster equal of it once there is one."""
        ...


class ServedStep:
    """The step that `runner` runs of the model in `folder`; `ConfigurationError` for unreadable texts."""

    def __init__(
        self,
        runner: Runner,
        folder: Path,
        model_id: str,
        *,
        weights: str | None = None,
        prompts: Path | None = None,
    ) -> None:
        self._runner = runner
        self._folder = folder
        self._model_id = model_id
        self._weights = weights
        self._texts: Texts | None = held_out(folder, prompts)

    def compiled(self, compile_step: CompileStep) -> Callable[..., Any]:
        """What serves in the step's place."""
        runner = self._runner
        return compile_step(
            runner.original,
            self._model_id,
            examples=runner.decode_examples,
            dynamic_shapes=runner.decode_dynamic_shapes(),
            recipe=self._recipe(),
            # Keys and values are written to the same places again.
            repeatable=True,
            judge=self._judge(),
            prepare=runner.prepare,
            buckets=runner.decode_buckets,
        )

    def _recipe(self) -> StepRecipe:
        loaded = self._runner.loaded
        return StepRecipe(
            folder=str(self._folder.resolve()),
            device=str(loaded.device),
            dtype=_named(loaded),
            places=self._runner.places,
            context_tokens=loaded.context_tokens,
            weights=self._weights,
        )

    def _judge(self) -> Judge:
        """Compares a form of the step with the model in fp32 on whole texts."""
        from loadwise.torch_engine.agreement import coarser
        from loadwise.torch_engine.forcing import Forcing

        runner, made = self._runner, list[Forcing]()

        def judge(step: Callable[..., Any], precision: str, paced: Paced) -> JsonObject:
            if not made:
                rows, prepare = runner.cache.rows, runner.prepare
                made.append(Forcing(*self._exact(), rows, prepare=prepare, texts=self._texts))
            own = coarser(precision, _named(runner.loaded))
            return made[0].judge(step, own, paced, runner.loaded).as_json()

        return judge

    def _exact(self) -> tuple[LoadedModel, Callable[..., Any]]:
        """The model in fp32, which may be the one that serves."""
        from loadwise.torch_engine.loading import load
        from loadwise.torch_engine.step import Step

        served = self._runner.loaded
        if _named(served) == "float32":
            return served, self._runner.original
        exact = load(self._folder, device=str(served.device), dtype="float32", weights=self._weights)
        return exact, Step(exact.model).eval()


def _named(loaded: LoadedModel) -> str:
    """The numbers that it computes in, as torch names them."""
    return str(loaded.shape.dtype).removeprefix("torch.")
