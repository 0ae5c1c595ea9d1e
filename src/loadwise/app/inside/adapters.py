"""Adapters that a running engine can be given: those in the operator's folder, where one process serves."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadwise.errors import EngineError


class RuntimeAdapters:
    """Folders under `model_dir` that hold a LoRA adapter; `models` is the engine's list of them."""

    def __init__(self, engine: str, models: Any, folder: Path | None) -> None:
        self._engine = engine
        self._models = models
        self._folder = folder
        # The engine's own: what it is asked runs there.
        self._loop = asyncio.get_running_loop()

    def folders(self) -> Mapping[str, Path]:
        """Adapters by name; links that lead out of the folder are left out."""
        if self._folder is None or not self._folder.is_dir():
            return {}
        root = self._folder.resolve()
        return {
            path.name: path
            for path in sorted(root.iterdir())
            if (path / "adapter_config.json").is_file() and path.resolve().is_relative_to(root)
        }

    async def load(self, name: str) -> None:
        """The engine serves the adapter; `EngineError` with its reason where it refuses. For another loop."""
        asked = asyncio.run_coroutine_threadsafe(self._load(name), self._loop)
        refusal = await asyncio.wrap_future(asked)
        if not isinstance(refusal, str):
            raise EngineError(f"The engine refused the adapter {name!r}: {_reason(refusal)}")

    async def _load(self, name: str) -> Any:
        module = importlib.import_module(f"{self._engine}.entrypoints.serve.lora.protocol")
        path = str(self.folders()[name])
        return await self._models.load_lora_adapter(
            module.LoadLoRAAdapterRequest(lora_name=name, lora_path=path)
        )


def _reason(refusal: Any) -> str:
    error = getattr(refusal, "error", refusal)
    return str(getattr(error, "message", error))
