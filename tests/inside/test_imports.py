"""What is imported where: light beside an engine, and no torch without one."""

from __future__ import annotations

import subprocess
import sys


def test_without_an_engine_the_origins_paths_import_no_torch() -> None:
    code = (
        "import aphrodite.engine.server_side_optimizer, aphrodite.endpoints.openai.serving_optimization, sys;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_every_engine_loads_of_ours_is_light() -> None:
    code = (
        "import loadwise.engines.inside.awake, loadwise.engines.inside.compiled, sys;"
        "heavy = {'aiohttp', 'fastapi', 'pydantic', 'typer', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
