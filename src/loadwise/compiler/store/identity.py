"""What a package was made from and for: two builds with one identity are interchangeable."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

from loadwise.compiler.examples import signature
from loadwise.compiler.parameters import code_digest, digest_of
from loadwise.ports import BuildRequest, PackagingBackend


def identity(backend: PackagingBackend, request: BuildRequest) -> dict[str, Any]:
    """Plain facts; `name` is the digest of all others."""
    facts = {
        "model": code_digest(request.model),
        "parameters": digest_of(request),
        "calls": [repr(signature(tuple(example))) for example in request.examples],
        "sizes": repr(request.dynamic_shapes) if request.dynamic_shapes is not None else request.dynamic,
        "backend": backend.name,
        "mode": request.mode,
        "versions": dict(backend.versions()),
        "machine": machine(),
        "threads": _threads(),
    }
    text = json.dumps(facts, sort_keys=True)
    return {**facts, "name": hashlib.sha256(text.encode()).hexdigest()[:40]}


@cache
def machine() -> str:
    """Architecture, processor and its instruction sets: code is made for these."""
    features = [platform.system(), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join([*features, platform.processor()])
    for name in ("model name", "flags", "Features"):
        features += next(([line] for line in lines if line.startswith(name)), [])
    return hashlib.sha256("\n".join(features).encode()).hexdigest()


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
