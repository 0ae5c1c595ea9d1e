"""A process that lets an OpenVINO form read texts token by token, and keeps what it predicts after each.

    python -m loadwise.engines.openvino.forcing FOLDER PRECISION TEXTS.npy LOGITS.npy

TEXTS are token ids [B, T], LOGITS float32 [B, T, V]; the form computes as it does when it serves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from loadwise.engines.openvino.precision import PRECISIONS


def main(folder: Path, precision: str, texts: Path, logits: Path) -> None:
    """LOGITS holds the predictions."""
    import numpy as np
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(folder / "openvino_model.xml", "CPU", PRECISIONS[precision].properties)
    ids = np.load(texts, allow_pickle=False)  # [B, T]
    np.save(logits, _read(compiled.create_infer_request(), ids), allow_pickle=False)


def _read(request: Any, ids: Any) -> Any:
    import numpy as np

    batch, tokens = ids.shape
    names = {name for port in request.model_inputs for name in port.get_names()}
    found = []
    for place in range(tokens):
        given = {
            "input_ids": ids[:, place : place + 1],
            "attention_mask": np.ones((batch, place + 1), dtype=np.int64),
            "position_ids": np.full((batch, 1), place, dtype=np.int64),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        answer = request.infer({name: value for name, value in given.items() if name in names})
        found.append(np.array(answer["logits"][:, -1], dtype=np.float32))
    return np.stack(found, axis=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
