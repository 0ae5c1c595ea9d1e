"""What `loadwise compile` found fastest for a model folder, for the next start to serve it so."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from loadwise.engines.exporter import fingerprint
from loadwise.engines.openvino.precision import PRECISIONS


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine ("openvino" or "torch") and the mode that it serves in."""

    engine: str
    mode: str


def remember(cache_dir: Path, folder: Path, choice: Choice) -> None:
    """The choice is kept for the folder as it is now; `OSError` where nothing can be written."""
    place = _place(cache_dir, folder)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
        json.dump(asdict(choice), file)
    Path(file.name).replace(place)


def recall(cache_dir: Path, folder: Path) -> Choice | None:
    """What was chosen for the folder as it is now; None when nothing sensible was."""
    try:
        values = json.loads(_place(cache_dir, folder).read_text(encoding="utf-8"))
        choice = Choice(engine=str(values["engine"]), mode=str(values["mode"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = choice.engine == "torch" or (choice.engine == "openvino" and choice.mode in PRECISIONS)
    return choice if known else None


def _place(cache_dir: Path, folder: Path) -> Path:
    return cache_dir / "chosen" / f"{fingerprint(folder)}.json"
