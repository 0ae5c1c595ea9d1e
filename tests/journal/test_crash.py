"""A process that is killed while it writes loses the last second at most, and never stops a start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIDES, KILLS = 4, 50


def test_two_hundred_kills_lose_at_most_a_second_and_never_stop_a_start(tmp_path: Path) -> None:
    script = Path(__file__).with_name("crashing.py")
    running = []
    for side in range(SIDES):
        folder = tmp_path / str(side)
        folder.mkdir()
        arguments = [sys.executable, str(script), str(folder), str(KILLS), str(side)]
        running.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in running:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error[-2000:]
        found = json.loads(out)
        assert found["kills"] == KILLS
        assert found["lost_s"] <= 1.0
        assert 0 < found["kept"] < found["told"]
        assert 0 < found["proved"] < found["told"]
    assert not list(tmp_path.rglob("*.corrupt-*"))
