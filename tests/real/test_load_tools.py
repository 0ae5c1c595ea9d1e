"""Load tools and clients of others, by the commands of docs/load-tools.md: they see no failed request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadwise_models import family

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/load-tools.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:2242"
GATEWAYS = Path(os.environ.get("LOADWISE_GATEWAYS", ROOT / ".cache" / "gateways")).resolve()
ASKED = 20


def commands(heading: str) -> list[str]:
    """What the page says to type under a heading."""
    (section,) = [part for part in PAGE.split("\n## ") if part.startswith(heading + "\n")]
    return re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)


@dataclass
class Shell:
    """Runs the page's commands in a folder, at one server, with a tool's environment."""

    folder: Path
    url: str
    environment: dict[str, str]

    def run(self, command: str, programs: Path) -> str:
        """The command's output; it must succeed."""
        assert ADDRESS in command
        done = subprocess.run(
            ["bash", "-c", command.replace(ADDRESS, self.url)],
            cwd=self.folder,
            env={
                **os.environ,
                **self.environment,
                "MODEL": str(family()["balanced"]),
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": "",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def result(self, name: str) -> Any:
        """What a tool wrote down."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ours(gateway: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of ours with its own models and the page's settings."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (settings := tmp_path_factory.mktemp("settings") / "load.yaml").write_text(text, encoding="utf-8")
    with gateway("--config", str(settings)) as server:
        yield server


@pytest.fixture
def shell(ours: Any, tmp_path: Path, engine_environment: dict[str, str]) -> Shell:
    return Shell(tmp_path, ours.url, engine_environment)


def none_failed(result: Any) -> None:
    """All requests of a benchmark of vLLM's family have their whole answers."""
    assert (result["completed"], result["failed"]) == (ASKED, 0)
    assert result["total_output_tokens"] > 0


@pytest.mark.engines
def test_vllms_benchmark_sees_no_failed_request(shell: Shell, engine_venv: Callable[[str], Path]) -> None:
    programs = engine_venv("vllm") / "bin"
    completions, chat = commands("vLLM's benchmark")
    shell.run(completions, programs)
    none_failed(shell.result("completions.json"))
    shell.run(chat, programs)
    none_failed(shell.result("chat.json"))


@pytest.mark.gateways
def test_guidellm_sees_no_failed_request(shell: Shell) -> None:
    programs = GATEWAYS / "guidellm/bin"
    if not (programs / "guidellm").exists():
        pytest.skip(f"guidellm is not installed in {GATEWAYS}: tools/gateways/build.sh")
    (command,) = commands("guidellm")
    shell.run(command, programs)
    (benchmark,) = shell.result("guidellm.json")["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals == {"successful": ASKED, "errored": 0, "incomplete": 0, "total": ASKED}


@pytest.mark.gateways
def test_the_openai_client_gets_every_answer_at_once(shell: Shell) -> None:
    (command,) = commands("The openai client")
    assert shell.run(command, Path(sys.executable).parent).strip() == f"{ASKED} answers"


@pytest.mark.engines
def test_aphrodites_benchmark_sees_no_failed_request_with_loadwise_inside(
    start: Any, tmp_path: Path, engine_environment: dict[str, str], engine_venv: Callable[[str], Path]
) -> None:
    programs = engine_venv("aphrodite") / "bin"
    (command,) = commands("Aphrodite's benchmark, with loadwise inside the engine")
    with start("aphrodite", inside=True, LOADWISE_OPTIMIZATION__REFUSE_LATE="false") as server:
        shell = Shell(tmp_path, server.url, engine_environment)
        shell.run(command, programs)
    none_failed(shell.result("aphrodite.json"))
