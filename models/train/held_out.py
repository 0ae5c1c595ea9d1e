"""Writes some of the text that was kept out of training beside each member's weights.

    python -m train.held_out --corpus build/corpus

A server holds faster forms of a member against it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from loadwise_models import family
from train.corpus import read

SAMPLE = ("copyreg.py", "importlib/_abc.py", "sched.py")


def sample(corpus: Path) -> str:
    """The sample's modules, one after the other; `KeyError` when one was not kept out."""
    texts = {module.path: module.text for module in read(corpus, "held_out")}
    return "\n\n".join(texts[path] for path in SAMPLE)


def main() -> None:
    """Writes held_out.txt into every member's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    text = sample(parser.parse_args().corpus)
    for folder in family().values():
        (folder / "held_out.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
