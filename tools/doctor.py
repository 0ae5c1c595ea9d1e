"""Says what this machine lacks for loadwise: `make doctor`. Exit code 1 when something needed is missing.

Runs with any Python 3 and nothing installed, so it is written without newer syntax.
"""

import os
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

GIB = 1024**3
OLDEST, NEWEST = (3, 11), (3, 13)
# The environment with the CPU build of torch, and room for builds.
DISK_BYTES = 4 * GIB
# Two real engines for the CPU, for `make test-engines`.
ENGINES_BYTES = 8 * GIB
# Three models, the server and a compilation beside it.
MEMORY_BYTES = 3 * GIB


class Finding:
    """One thing looked at: `state` is ok, missing (needed) or without (works with less)."""

    def __init__(self, name, state, text):
        self.name = name
        self.state = state
        self.text = text

    def line(self):
        """One line for the terminal."""
        return f"{self.state:<8} {self.name}: {self.text}"


def check_python():
    """The interpreter is one that loadwise supports."""
    found = sys.version_info[:2]
    version = platform.python_version()
    if OLDEST <= found <= NEWEST:
        return Finding("python", "ok", version)
    return Finding("python", "missing", f"{version}; loadwise needs 3.11 to 3.13: make PYTHON=python3.12 ...")


def check_venv():
    """Virtual environments can be made, pip included."""
    if find_spec("venv") and find_spec("ensurepip"):
        return Finding("python3-venv", "ok", "virtual environments can be made")
    return Finding("python3-venv", "missing", "sudo apt-get install python3-venv")


def check_compiler():
    """A C++ compiler for torch's builds; serving works without."""
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path:
        return Finding("g++", "ok", path)
    return Finding("g++", "without", "serving works, builds are unavailable: sudo apt-get install g++")


def check_headers():
    """Python's headers, which torch's builds include; serving works without."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.is_file():
        return Finding("python3-dev", "ok", str(header))
    return Finding(
        "python3-dev", "without", "serving works, builds are unavailable: sudo apt-get install python3-dev"
    )


def check_make():
    """Make is there; the file may also be run without it."""
    path = shutil.which("make")
    return Finding("make", "ok", path) if path else Finding("make", "missing", "sudo apt-get install make")


def check_chromium():
    """A browser for the dashboard's tests; serving works without."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path:
        return Finding("chromium", "ok", path)
    return Finding("chromium", "without", "the dashboard's tests are skipped: sudo apt-get install chromium")


def check_disk(folder="."):
    """Enough disk for the environment."""
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {Path(folder).resolve()}"
    if free >= DISK_BYTES:
        return Finding("disk", "ok", text)
    return Finding("disk", "missing", f"{text}; {DISK_BYTES / GIB:.0f} GiB are needed for .venv")


def check_engines(folder="."):
    """Disk for the real engines that tests build; everything else works without."""
    kept = Path(os.environ.get("LOADWISE_ENGINES", Path(folder) / ".cache" / "engines"))
    if all((kept / name / "bin").is_dir() for name in ("vllm", "aphrodite")):
        return Finding("real engines", "ok", f"built in {kept}")
    free = shutil.disk_usage(folder).free
    if free >= ENGINES_BYTES:
        return Finding("real engines", "ok", f"make test-engines builds them in {kept}")
    return Finding(
        "real engines",
        "without",
        f"make test-engines needs {ENGINES_BYTES / GIB:.0f} GiB of disk, {free / GIB:.1f} GiB are free",
    )


def check_memory():
    """Enough memory for three models and a build."""
    available = available_memory_bytes()
    if available is None:
        return Finding("memory", "without", "cannot be read on this system")
    text = f"{available / GIB:.1f} GiB available"
    if available >= MEMORY_BYTES:
        return Finding("memory", "ok", text)
    return Finding(
        "memory",
        "without",
        f"{text}; below {MEMORY_BYTES / GIB:.0f} GiB builds may be stopped for lack of it",
    )


def available_memory_bytes(path="/proc/meminfo"):
    """What the kernel says can be used without swapping, or None where it does not say."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(sizes[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def check_promtool():
    """Promtool proves the alert rules in the tests; serving works without."""
    path = shutil.which("promtool")
    if path:
        return Finding("promtool", "ok", path)
    return Finding("promtool", "without", "tests of the alert rules skip: sudo apt-get install prometheus")


def check_processor():
    """The kind of processor: the shipped engine runs on 64-bit x86 and ARM."""
    machine = platform.machine()
    if machine.lower() in {"x86_64", "amd64", "aarch64", "arm64"}:
        return Finding("processor", "ok", f"{machine}, {os.cpu_count()} cores")
    return Finding("processor", "missing", f"{machine}; there is no CPU engine for it, use --upstream")


CHECKS = (
    check_python,
    check_venv,
    check_make,
    check_compiler,
    check_headers,
    check_chromium,
    check_promtool,
    check_processor,
    check_disk,
    check_engines,
    check_memory,
)


def main():
    """Prints a line per check; 1 when something needed is missing."""
    findings = [check() for check in CHECKS]
    for finding in findings:
        print(finding.line())
    missing = [finding.name for finding in findings if finding.state == "missing"]
    print(f"\nMissing: {', '.join(missing)}." if missing else "\nNothing needed is missing.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
