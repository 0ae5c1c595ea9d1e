"""What `loadwise compile` found of a model folder: its fastest right form, and its variants' quality."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadwise.engines.exporter import fingerprint
from loadwise.engines.openvino.precision import PRECISIONS


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine ("openvino" or "torch") and the mode that it serves in."""

    engine: str
    mode: str


def quantised(form: str) -> bool:
    """Whether a form, as the settings name it, is a variant with a quality of its own."""
    backend, _, mode = form.partition("/")
    return backend == "torchao" or (backend == "openvino" and PRECISIONS[mode].quantised)


def remember(cache_dir: Path, folder: Path, choice: Choice) -> None:
    """The choice is kept for the folder as it is now; `OSError` where nothing can be written."""
    _write(_place(cache_dir, folder), asdict(choice))


def recall(cache_dir: Path, folder: Path) -> Choice | None:
    """What was chosen for the folder as it is now; None when nothing sensible was."""
    values = _read(_place(cache_dir, folder))
    choice = Choice(engine=str(values.get("engine")), mode=str(values.get("mode")))
    known = choice.engine == "torch" or (choice.engine == "openvino" and choice.mode in PRECISIONS)
    return choice if known and "mode" in values else None


def remember_qualities(cache_dir: Path, folder: Path, found: Mapping[str, float]) -> None:
    """Qualities of variants, as shares of the model's own, are kept beside those found earlier."""
    place = _qualities(cache_dir, folder)
    _write(place, {**_read(place), **found})


def recall_quality(cache_dir: Path, folder: Path, form: str) -> float | None:
    """A variant's quality as a share (0..1) of the model's own; None before it was measured."""
    value = _read(_qualities(cache_dir, folder)).get(form)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0.0 <= value <= 1.0 else None


def _write(place: Path, values: Mapping[str, Any]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
        json.dump(values, file)
    Path(file.name).replace(place)


def _read(place: Path) -> dict[str, Any]:
    """Empty when there is nothing, or nothing sensible."""
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _place(cache_dir: Path, folder: Path) -> Path:
    return cache_dir / "chosen" / f"{fingerprint(folder)}.json"


def _qualities(cache_dir: Path, folder: Path) -> Path:
    return cache_dir / "chosen" / f"{fingerprint(folder)}-qualities.json"
