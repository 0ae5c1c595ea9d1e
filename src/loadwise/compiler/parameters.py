"""Whether a module is still what a build was made from: the same tensors, unchanged, in the same places."""

from __future__ import annotations

from typing import Any


class ParameterKey:
    """A module's parameters, buffers and submodules at one moment; no tensor is copied.

    `load_state_dict`, an in-place change, an assigned `.data`, a replaced parameter or submodule (an adapter)
    and training mode all break it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._modules = [
            (module._modules, name, child)
            for module in model.modules()
            for name, child in module._modules.items()
        ]
        self._tensors = [
            (owner, name, tensor, tensor._version, tensor.data_ptr())
            for module in model.modules()
            for owner in (module._parameters, module._buffers)
            for name, tensor in owner.items()
            if tensor is not None
        ]

    def holds(self) -> bool:
        """True while nothing has changed; about 0.2 us per tensor."""
        if self._model.training:
            return False
        for owner, name, tensor, version, pointer in self._tensors:
            if owner.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return all(owner.get(name) is child for owner, name, child in self._modules)
