"""Collects CPython's standard library sources and keeps some modules out of training.

    python -m train.corpus --out build/corpus

The rules stand at the top; the files of the running interpreter are the data.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
# Deliberately broken or foreign sources that test the old converter.
SKIPPED_PREFIXES = ("lib2to3/tests/data/",)
HELD_OUT_SHARE = 0.03
# Larger modules (tables, the manual's text) stay in training: one would be a third of the test.
LARGEST_HELD_OUT_BYTES = 200_000
# A line shorter than this ("return None", "else:") says nothing about copying.
TELLING_LINE_CHARACTERS = 20
# A module that shares more of its telling lines with one training module is no fair test.
NEAR_DUPLICATE_SHARE = 0.5


@dataclass(frozen=True)
class Module:
    """One source file: its path below the library's root, with forward slashes, and its text."""

    path: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text in UTF-8, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """The modules to train on and those kept out; both ordered by path."""

    training: tuple[Module, ...]
    held_out: tuple[Module, ...]


def library_root() -> Path:
    """The standard library's folder of the running interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def modules(root: Path) -> Iterator[Module]:
    """Every readable module below root, ordered by path, each text once."""
    seen: set[str] = set()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if _skipped(path):
            continue
        text = _read(file)
        if text is None:
            continue
        module = Module(path, text)
        if module.digest not in seen:
            seen.add(module.digest)
            yield module


def split(found: Iterable[Module], share: float = HELD_OUT_SHARE) -> Corpus:
    """Keeps out about `share` of the modules; near-duplicates of training modules stay in training."""
    ordered = list(found)
    chosen = [module for module in ordered if _kept_out(module, share)]
    index = _lines_to_modules([module for module in ordered if not _kept_out(module, share)])
    held_out = [module for module in chosen if _largest_overlap(module, index) <= NEAR_DUPLICATE_SHARE]
    kept = {module.path for module in held_out}
    return Corpus(tuple(m for m in ordered if m.path not in kept), tuple(held_out))


def telling_lines(text: str) -> frozenset[str]:
    """The stripped lines of a text that are long enough to betray copying."""
    lines = (line.strip() for line in text.splitlines())
    return frozenset(line for line in lines if len(line) >= TELLING_LINE_CHARACTERS)


def _skipped(path: str) -> bool:
    return path.startswith(SKIPPED_PREFIXES) or not SKIPPED_FOLDERS.isdisjoint(path.split("/"))


def _read(file: Path) -> str | None:
    """The text of a file that is UTF-8 and Python, else None."""
    try:
        text = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text if text.strip() else None


def _kept_out(module: Module, share: float) -> bool:
    first = int.from_bytes(hashlib.sha256(module.path.encode()).digest()[:8], "big")
    return first < share * 2**64 and len(module.text.encode()) <= LARGEST_HELD_OUT_BYTES


def _lines_to_modules(found: Iterable[Module]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for number, module in enumerate(found):
        for line in telling_lines(module.text):
            index.setdefault(line, []).append(number)
    return index


def _largest_overlap(module: Module, index: dict[str, list[int]]) -> float:
    """The largest share of the module's telling lines that one indexed module also has, 0 to 1."""
    lines = telling_lines(module.text)
    shared: dict[int, int] = {}
    for line in lines:
        for number in index.get(line, ()):
            shared[number] = shared.get(number, 0) + 1
    return max(shared.values(), default=0) / max(1, len(lines))


def _write(corpus: Corpus, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("training", corpus.training), ("held_out", corpus.held_out)):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for module in part:
                lines.write(json.dumps({"path": module.path, "text": module.text}) + "\n")
    (out / "corpus.json").write_text(json.dumps(_facts(corpus), indent=1) + "\n")


def _facts(corpus: Corpus) -> dict[str, object]:
    everything = hashlib.sha256()
    for module in (*corpus.training, *corpus.held_out):
        everything.update(f"{module.path} {module.digest}\n".encode())
    return {
        "python": platform.python_version(),
        "training_modules": len(corpus.training),
        "training_bytes": sum(len(module.text.encode()) for module in corpus.training),
        "held_out_modules": len(corpus.held_out),
        "held_out_bytes": sum(len(module.text.encode()) for module in corpus.held_out),
        "held_out": [module.path for module in corpus.held_out],
        "sha256": everything.hexdigest(),
    }


def read(out: Path, name: str) -> Iterator[Module]:
    """The modules of one part, `training` or `held_out`, as written by this script."""
    with (out / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Module(**json.loads(line))


def main() -> None:
    """Writes training.jsonl, held_out.jsonl and corpus.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/corpus"))
    parser.add_argument("--library", type=Path, default=library_root())
    arguments = parser.parse_args()
    corpus = split(modules(arguments.library))
    _write(corpus, arguments.out)
    facts = _facts(corpus)
    print(", ".join(f"{key} {value}" for key, value in facts.items() if key != "held_out"))


if __name__ == "__main__":
    main()
