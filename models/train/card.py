"""Writes MODEL_CARD.md and its picture of the loss curves from what was measured.

python -m train.card --runs build --corpus build/corpus
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

Curve = list[tuple[float, float]]

NAMES = ("fast", "balanced", "accurate")
# Readable on white and on dark, and apart for eyes that confuse red and green (Okabe and Ito).
COLOURS = ("#e69f00", "#56b4e9", "#009e73")
WIDTH, HEIGHT, MARGIN = 720, 400, 56

TEMPLATE = Path(__file__).with_name("card_template.md")


@dataclass(frozen=True)
class Run:
    """One member's run: its facts as shipped, its plan and progress, its curve."""

    name: str
    facts: dict[str, object]
    progress: dict[str, object]
    curve: Curve

    @property
    def plan(self) -> dict[str, object]:
        """The plan that the run began with or was last continued with."""
        plan = self.progress["plan"]
        assert isinstance(plan, dict)
        return plan

    @property
    def loss(self) -> float:
        """Held-out loss of the shipped weights, nats per token."""
        return float(str(self.facts["held_out_loss_nats_per_token"]))


def read_run(name: str, runs: Path, shipped: Path) -> Run:
    """A member's run as the trainer and the exporter left it."""
    facts = json.loads((shipped / name / "loadwise.json").read_text())
    progress = json.loads((runs / name / "progress.json").read_text())
    with (runs / name / "curve.csv").open(newline="") as file:
        curve = [(float(row["tokens"]), float(row["held_out_loss"])) for row in csv.DictReader(file)]
    return Run(name, facts, progress, curve)


def picture(curves: Sequence[tuple[str, Curve]]) -> str:
    """An SVG of held-out loss over tokens, one line per named curve."""
    points = [point for _, curve in curves for point in curve]
    right = max(tokens for tokens, _ in points)
    low, high = min(loss for _, loss in points) - 0.1, max(loss for _, loss in points) + 0.1

    def place(tokens: float, loss: float) -> tuple[float, float]:
        x = MARGIN + tokens / right * (WIDTH - 2 * MARGIN)
        return round(x, 1), round(MARGIN + (high - loss) / (high - low) * (HEIGHT - 2 * MARGIN), 1)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *_axes(place, right, low, high)]
    for number, (name, curve) in enumerate(curves):
        parts += _line(name, [place(*point) for point in curve], COLOURS[number % len(COLOURS)], number)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n' + "\n".join(parts) + "\n</svg>\n"


def _axes(place: object, right: float, low: float, high: float) -> list[str]:
    assert callable(place)
    parts = []
    step = 0.5
    for number in range(int(low / step) + 1, int(high / step) + 1):
        _, y = place(0, number * step)
        parts.append(f'<path d="M{MARGIN} {y}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y + 4}" text-anchor="end">{number * step:.1f}</text>')
    millions = right / 1e6
    for number in range(int(millions) + 1):
        x, y = place(number * 1e6, low)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{number}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">million tokens seen</text>')
    parts.append(f'<text x="{MARGIN}" y="{MARGIN - 22}">held-out loss, nats per token</text>')
    return parts


def _line(name: str, points: list[tuple[float, float]], colour: str, number: int) -> list[str]:
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    y = MARGIN + 18 * number
    return [
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in points),
        f'<path d="M{WIDTH - 170} {y}h24" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{WIDTH - 138}" y="{y + 4}">{name}</text>',
    ]


def card(runs: Sequence[Run], corpus: dict[str, object], training_tokens: int) -> str:
    """The model card's text."""
    held_out = corpus["held_out"]
    assert isinstance(held_out, list)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        rows="\n".join(_row(run, before) for run, before in zip(runs, (None, *runs[:-1]), strict=True)),
        held_out_tokens=f"{runs[0].facts['held_out_tokens']:,}",
        held_out_modules=corpus["held_out_modules"],
        plateau="\n".join(_plateau(run, training_tokens) for run in runs),
        python=corpus["python"],
        training_modules=f"{corpus['training_modules']:,}",
        training_megabytes=f"{int(str(corpus['training_bytes'])) / 1e6:.1f}",
        training_tokens=f"{training_tokens:,}",
        digest=corpus["sha256"],
        held_out=", ".join(f"`{path}`" for path in held_out),
        seed=runs[0].plan["seed"],
        rates=", ".join(f"{run.name} {run.plan['rate']}" for run in runs),
        batches=", ".join(f"{run.name} {run.plan['batch_tokens']:,}" for run in runs),
        parts=", ".join(f"{run.name} {1 - float(str(run.plan['short_share'])):.0%}" for run in runs),
        commands="\n".join(_command(run, training_tokens) for run in runs),
    )


def _row(run: Run, before: Run | None) -> str:
    from train.network import SIZES

    size = SIZES[run.name]
    shape = f"{size.hidden} x {size.layers}, {size.heads}, {size.feed_forward}"
    step = "" if before is None else f"{run.loss - before.loss:+.3f}"
    cells = (
        run.name,
        f"{run.facts['parameters']:,}",
        shape,
        f"{run.facts['trained_tokens']:,}",
        f"{run.loss:.3f}",
    )
    return f"| {' | '.join(cells)} | {step} |"


def _plateau(run: Run, training_tokens: int) -> str:
    seen = int(str(run.progress["tokens"]))
    minutes = float(str(run.progress["seconds"])) / 60
    passes = seen / training_tokens
    spent = f"{seen:,} tokens, {passes:.2f} passes over the training text, in {minutes:.0f} minutes"
    if int(str(run.progress["stale"])) >= int(str(run.plan["patience"])):
        return f"- `{run.name}`: yes, after {spent}."
    return f"- `{run.name}`: no. Its budget ended first: {spent}. Its loss was still falling."


def _command(run: Run, training_tokens: int) -> str:
    epochs = int(str(run.progress["tokens"])) / training_tokens
    asked = {"rate": "rate", "batch_tokens": "batch-tokens", "short_share": "short-share"}
    options = " ".join(f"--{option} {run.plan[key]}" for key, option in asked.items())
    options += f" --epochs {epochs:.2f}"
    return f"python -m train.train --size {run.name} --out build/{run.name} {options} --bfloat16"


def main() -> None:
    """Writes the card and curves.svg beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("build"))
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--tokens-folder", type=Path, default=Path("build/tokens"))
    parser.add_argument("--shipped", type=Path, default=Path("src/loadwise_models"))
    parser.add_argument("--out", type=Path, default=Path("MODEL_CARD.md"))
    given = parser.parse_args()
    runs = [read_run(name, given.runs, given.shipped) for name in NAMES]
    training_tokens = (given.tokens_folder / "training.bin").stat().st_size // 2
    corpus = json.loads((given.corpus / "corpus.json").read_text())
    given.out.write_text(card(runs, corpus, training_tokens), encoding="utf-8")
    given.out.with_name("curves.svg").write_text(
        picture([(run.name, run.curve) for run in runs]), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
