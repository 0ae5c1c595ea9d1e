"""The generated dashboard shows every metric of the table, and asks for nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from loadwise.telemetry.metric import Kind
from loadwise.telemetry.names import METRICS

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_committed_is_what_the_tables_give() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "deploy.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_dashboard_asks_for_every_metric_and_no_other() -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "loadwise.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"loadwise_\w+", target["expr"])
    }
    expected = {f"{m.name}_bucket" if m.kind is Kind.HISTOGRAM else m.name for m in METRICS}
    assert asked == expected


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "loadwise.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells
