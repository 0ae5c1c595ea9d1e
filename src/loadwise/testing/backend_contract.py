# ruff: noqa: S101, D102 - these are tests, which assert, and whose names are their claims
"""What every build backend promises, as tests: subclass the contract and give it a `backend` fixture.

    class TestMine(BuildBackendContract):
        @pytest.fixture
        def backend(self): ...

Each build takes as long as the backend's builds take; the models are a few numbers large. Needs torch.
"""

from __future__ import annotations

import threading
from typing import Any

from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.ports import BuildBackend, BuildRequest


def request_for(backend: BuildBackend, model: Any, *args: Any, **changes: Any) -> BuildRequest:
    """A request to build `model`, in evaluation mode and the backend's first mode, for a call with `args`."""
    options: dict[str, Any] = {"model_id": "contract", "examples": [(args, {})]}
    return BuildRequest(model=model.eval(), mode=next(iter(backend.forms)), **options | changes)


def refusal(backend: BuildBackend, request: BuildRequest) -> BuildError:
    """The error that a build must end with."""
    try:
        backend.build(request)
    except BuildError as error:
        return error
    raise AssertionError("The build was made.")


class BuildBackendContract:
    """For every `BuildBackend`, real or fake."""

    def test_it_says_whether_it_works_here_and_what_is_missing(self, backend: BuildBackend) -> None:
        availability = backend.available()
        assert availability.ok or availability.reason
        assert backend.name

    def test_a_build_answers_as_the_model_and_leaves_the_model_alone(self, backend: BuildBackend) -> None:
        import torch

        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        before = {name: (tensor, tensor._version) for name, tensor in model.named_parameters()}
        x = torch.randn(3, 4)
        with torch.no_grad():
            built = backend.build(request_for(backend, model, x))
            assert built.accepts((x,), {})
            assert not built.accepts((x.double(),), {})
            assert torch.allclose(built.call(x), model(x), atol=1e-5)
        assert all(before[name] == (tensor, tensor._version) for name, tensor in model.named_parameters())

    def test_a_model_that_uses_chance_is_declined(self, backend: BuildBackend) -> None:
        import torch

        class Noisy(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
            def forward(self, x: Any) -> Any:
                return x + torch.rand_like(x)

        assert isinstance(refusal(backend, request_for(backend, Noisy(), torch.ones(3))), BuildDeclinedError)

    def test_a_build_that_is_no_longer_wanted_ends(self, backend: BuildBackend) -> None:
        import torch

        stop = threading.Event()
        stop.set()
        error = refusal(backend, request_for(backend, torch.nn.Linear(2, 2), torch.ones(1, 2), stop=stop))
        assert error.remedy
