"""Real engines behind one interface: Aphrodite and vLLM inside and in front, and the embedded engine.

The servers are the documentation's own commands. `LOADWISE_ENGINES` names the folder of built engines;
without it `.cache/engines`, where `make test-engines` builds them.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ENGINES = Path(os.environ.get("LOADWISE_ENGINES", ROOT / ".cache" / "engines")).resolve()
PAGES = {"aphrodite": ROOT / "docs/engines/aphrodite.md", "vllm": ROOT / "docs/engines/vllm.md"}
PORTS = {"aphrodite": 2242, "vllm": 8000}
RIGS = ("aphrodite-inside", "aphrodite-front", "vllm-inside", "vllm-front", "embedded")
MODEL = "small"
ADMIN_KEY = "change-me"
# The engines read these where there is no GPU; the rest keeps them off the network.
ENVIRONMENT = {
    "APHRODITE_TARGET_DEVICE": "cpu",
    "APHRODITE_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
# Outcomes by claim and rig, for the table at the end.
_TABLE: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Block:
    """One command of a page, under its heading."""

    heading: str
    command: str


def blocks(page: Path) -> list[Block]:
    """The page's commands for a shell, in order."""
    found, heading, lines = [], "", None
    for line in page.read_text(encoding="utf-8").splitlines():
        if lines is None and line.startswith("## "):
            heading = line[3:]
        elif line.startswith("```bash"):
            lines = []
        elif line.startswith("```") and lines is not None:
            found.append(Block(heading, "\n".join(lines)))
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


@dataclass
class Rig:
    """One way to serve the demo model, as a client and an operator meet it."""

    name: str
    # Where clients and operators go, and where the engine itself tells how it is.
    url: str
    engine_url: str
    engine: str
    model: str = MODEL
    # The engine's own key, where it wants one.
    key: str | None = None

    @property
    def inside(self) -> bool:
        return self.name.endswith("-inside")

    @property
    def headers(self) -> dict[str, str]:
        """What a client sends to be let in."""
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}

    def operator(self) -> httpx.Client:
        """A client that may change things."""
        # Nothing here is encrypted, and reading the system's authorities takes 20 ms each time.
        return httpx.Client(
            base_url=self.url,
            headers={"x-loadwise-admin-key": ADMIN_KEY, **self.headers},
            timeout=30,
            trust_env=False,
            verify=False,
        )

    def view(self, name: str) -> Any:
        with self.operator() as client:
            answer = client.get(f"/v1/optimization/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def configure(self, **changes: Any) -> Any:
        with self.operator() as client:
            answer = client.post("/v1/optimization/configure", json=changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def engine_says(self) -> dict[str, float]:
        """Running, waiting and token counts, in the engine's own words."""
        if self.engine == "embedded":
            # Measured at the call, by the engine itself.
            return {"running": self.view("metrics")["active_requests"]}
        page = httpx.get(self.engine_url + "/metrics", timeout=30, trust_env=False, verify=False).text
        names = {
            "running": "num_requests_running",
            "waiting": "num_requests_waiting",
            "prompt_tokens": "prompt_tokens_total",
            "output_tokens": "generation_tokens_total",
        }
        return {word: _sum(page, f"{self.engine}:{name}") for word, name in names.items()}


def _sum(page: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))


@pytest.fixture(scope="session")
def rig_type() -> type[Rig]:
    return Rig


@pytest.fixture(scope="session")
def servers() -> Iterator[Any]:
    """The benchmarks' module that starts and stops servers."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("servers")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return ROOT / "models/src/loadwise_models/balanced"


@pytest.fixture(scope="session")
def engine_environment() -> dict[str, str]:
    return ENVIRONMENT


def venv_of(engine: str) -> Path:
    """A built engine's environment; the test is skipped where there is none."""
    venv = ENGINES / engine
    if not (venv / "bin" / "loadwise").exists():
        pytest.skip(f"{engine} is not built in {ENGINES}: make test-engines")
    return venv


@pytest.fixture(scope="session")
def engine_venv() -> Callable[[str], Path]:
    return venv_of


@pytest.fixture(scope="session")
def start(servers: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes the server of an engine, by its page's command, with (inside) or without loadwise."""

    def make(engine: str, *, inside: bool, more: str = "", **environment: str) -> Any:
        venv, port = venv_of(engine), servers.free_port()
        (command,) = [b.command for b in blocks(PAGES[engine]) if b.heading == "Switch on"]
        command = command.replace(str(PORTS[engine]), str(port)) + more
        if not inside:
            command = command.replace("_PLUGINS=loadwise", "_PLUGINS=none")
        home = tmp_path_factory.mktemp(engine)
        known = {
            **ENVIRONMENT,
            "MODEL": str(model_folder),
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            # Short enough for a socket.
            "LOADWISE_STATE_DIR": str(home),
            "PYTHONPATH": "",
            **environment,
        }
        return servers.Server(
            name=f"{engine} {'inside' if inside else 'alone'}",
            command=["bash", "-c", f"exec env {command}"],
            url=f"http://127.0.0.1:{port}",
            log=home / "log",
            env=known,
            ready_path="/health",
        )

    return make


@pytest.fixture(scope="session")
def gateway(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a `loadwise serve` with the given options."""

    def make(*options: str) -> Any:
        port, home = servers.free_port(), tmp_path_factory.mktemp("gateway")
        words = ("serve", "--port", str(port), "--admin-key", ADMIN_KEY, *options)
        return servers.Server(
            name="loadwise",
            command=[sys.executable, "-c", "from loadwise.cli import main; main()", *words],
            url=f"http://127.0.0.1:{port}",
            log=home / "log",
            env={"LOADWISE_STATE_DIR": str(home), "LOADWISE_CACHE_DIR": str(home / "cache")},
            ready_path="/health/readiness",
        )

    return make


@pytest.fixture(scope="session", params=RIGS)
def rig(request: pytest.FixtureRequest, start: Any, gateway: Any, model_folder: Path) -> Iterator[Rig]:
    """One rig after the other; each is kept for all its tests."""
    name = request.param
    engine, _, way = name.partition("-")
    with ExitStack() as stack:
        if engine == "embedded":
            server = stack.enter_context(gateway("--model", f"{MODEL}={model_folder}"))
            yield warmed(Rig(name, server.url, server.url, engine))
            return
        server = stack.enter_context(start(engine, inside=way == "inside"))
        url = server.url
        if way == "front":
            url = stack.enter_context(gateway("--upstream", f"{MODEL}={server.url}")).url
        yield warmed(Rig(name, url, server.url, engine))


def warmed(rig: Rig) -> Rig:
    """The rig after its first answer, for engines compile then; bursts wait instead of being refused."""
    rig.configure(refuse_late=False)
    asked = {"model": rig.model, "max_tokens": 2}
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for path, more in (("completions", {"prompt": "a"}), ("chat/completions", chat)):
        url = f"{rig.url}/v1/{path}"
        answer = httpx.post(url, json={**asked, **more}, timeout=240, trust_env=False)
        assert answer.status_code == 200, answer.text
    return rig


# --- the table ------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    callspec = getattr(item, "callspec", None)
    rig_name = None if callspec is None else callspec.params.get("rig")
    if rig_name is not None and (report.when == "call" or report.outcome != "passed"):
        claim = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
        signs = {"passed": "yes", "failed": "NO", "skipped": "-"}
        _TABLE.setdefault(claim, {})[rig_name] = signs[report.outcome]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _TABLE:
        return
    width = max(map(len, _TABLE))
    terminalreporter.section("real engines")
    terminalreporter.line(" " * width + "".join(f"  {name:<16}" for name in RIGS))
    for claim, found in _TABLE.items():
        cells = "".join(f"  {found.get(name, '-'):<16}" for name in RIGS)
        terminalreporter.line(f"{claim:<{width}}{cells}")


# --- the pages ------------------------------------------------------------------------------------


class Pages:
    """What the engines' pages say to type."""

    blocks = staticmethod(lambda engine: blocks(PAGES[engine]))
    venv = staticmethod(venv_of)

    def run(self, rig: Rig, command: str) -> str:
        """A command's output, with the rig's port for the page's."""
        spoken = command.replace(f"http://127.0.0.1:{PORTS[rig.engine]}", rig.url)
        done = subprocess.run(["bash", "-c", spoken], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def pages() -> Pages:
    return Pages()
