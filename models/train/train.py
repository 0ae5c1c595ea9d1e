"""Trains one member of the family, resumable, to a token budget, a time budget or its plateau.

    python -m train.train --size accurate --tokens-folder build/tokens --out build/accurate

On a GPU: --device cuda --epochs 8 (bfloat16 products). On a processor with AVX-512 BF16 or AMX:
--bfloat16 (1.7 times as fast on a 2.6 GHz Zen 4). Stops early when the held-out loss no longer falls.
The last line printed is transformers' own fp32 loss on all held-out tokens.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.muon import ALONE, Muon
from train.network import CONTEXT, SIZES, Llama, parameters
from train.ranks import Ranks, join

SHORT = 256
# Windows of one pool are shuffled together, so neighbours in a file do not share a batch.
POOL_BLOCKS = 64
WARM_UP = 0.02
WINDOWS_PER_CHECK = 32
Tokens = np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a run may spend and how: tokens, seconds, batch sizes in tokens, rates, patience in checks."""

    size: str
    budget_tokens: int
    budget_s: float
    batch_tokens: int
    micro_tokens: int
    rate: float
    weight_decay: float
    short_share: float
    check_tokens: int
    patience: int
    seed: int


@dataclass
class Progress:
    """Where a run stands: tokens seen, seconds spent, best held-out loss at full context, checks since."""

    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    stale: int = 0

    def share(self, plan: Plan) -> float:
        """The spent share of the budget that runs out first, 0 to 1."""
        return min(1.0, max(self.tokens / plan.budget_tokens, self.seconds / plan.budget_s))


def rate_factor(share: float) -> float:
    """The learning rate's factor at a spent share of the budget: warm-up, then linear to zero."""
    return min(share / WARM_UP, (1 - share) / (1 - WARM_UP)) if share < 1 else 0.0


@lru_cache(maxsize=4)
def window_starts(count: int, context: int, epoch: int, seed: int) -> np.ndarray:
    """Where an epoch's windows start in a stream of `count` tokens; both contexts visit alike.

    Blocks of CONTEXT tokens come in one shuffled order for every context, so that a run which
    changes its context in mid-epoch still sees each token once.
    """
    random = np.random.default_rng((seed, epoch))
    shift = int(random.integers(CONTEXT))
    blocks = random.permutation((count - CONTEXT) // CONTEXT) * CONTEXT + shift
    whole = len(blocks) // POOL_BLOCKS * POOL_BLOCKS
    if context == CONTEXT:
        return blocks[:whole]
    parts = np.arange(0, CONTEXT, context)
    pools = (blocks[:whole, None] + parts).reshape(-1, POOL_BLOCKS * len(parts))
    return random.permuted(pools, axis=1).reshape(-1)


def batch(stream: Tokens, starts: np.ndarray, context: int) -> Tensor:
    """The windows that start there, each with the token after it; int64, (B, T + 1)."""
    rows = np.stack([stream[start : start + context + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


def take(stream: Tokens, at: int, amount: int, context: int, seed: int) -> Tensor:
    """`amount` tokens of training windows from position `at` of the endless, shuffled stream."""
    per_epoch = len(window_starts(len(stream), context, 0, seed)) * context - amount
    epoch, offset = divmod(at, per_epoch)
    starts = window_starts(len(stream), context, epoch, seed)
    first = offset // context
    return batch(stream, starts[first : first + amount // context], context)


@torch.no_grad()
def held_out_loss(
    model: Llama, stream: Tokens, context: int, windows: int = WINDOWS_PER_CHECK, *, bfloat16: bool = False
) -> float:
    """Mean nats per token over evenly spread blocks of CONTEXT tokens, cut to `context`."""
    spread = np.linspace(0, len(stream) - CONTEXT - 1, windows).astype(int)
    device = model.cos.device
    total = 0.0
    for start in spread:
        parts = start + np.arange(0, CONTEXT, context)
        with _precision(device.type, bfloat16):
            total += model.loss(batch(stream, parts, context).to(device)).item()
    return total / windows


class Trainer:
    """Owns the model, its optimizers, and the files of one run."""

    def __init__(
        self,
        plan: Plan,
        training: Tokens,
        held_out: Tokens,
        out: Path,
        device: str,
        ranks: Ranks = ALONE,
        *,
        bfloat16: bool = False,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.ranks = ranks
        self.plan, self.training, self.held_out, self.out, self.device = plan, training, held_out, out, device
        self.model = Llama(SIZES[plan.size]).to(device)
        hidden = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() < 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, plan.rate, weight_decay=plan.weight_decay, ranks=ranks),
            torch.optim.AdamW(others, plan.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.bfloat16 = bfloat16 or device == "cuda"
        # In fp32 on a CPU matrix products are seven tenths of a step, and compiled steps measured no faster.
        self.loss: Callable[[Tensor], Tensor] = self.model.loss
        if self.bfloat16:
            self.loss = torch.compile(self.model.loss, dynamic=False)
        self.progress = Progress()

    def run(self, until_tokens: float = math.inf) -> None:
        """Trains until the budget is spent, the held-out loss stops falling, or so many tokens were seen."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        losses: list[float] = []
        next_check = self.progress.tokens + self.plan.check_tokens
        while self.progress.tokens < until_tokens and not self.finished:
            began = time.monotonic()
            losses.append(self._step())
            self.progress.tokens += self.plan.batch_tokens
            self.progress.seconds += time.monotonic() - began
            if self.progress.tokens >= next_check:
                next_check += self.plan.check_tokens
                self._check(losses)
                losses.clear()
            self._agree()
        if losses:
            self._check(losses)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent or the held-out loss has stopped falling."""
        return self.progress.share(self.plan) >= 1 or self.progress.stale >= self.plan.patience

    @property
    def context(self) -> int:
        """The window's length now, in tokens: short for most of a run, full at its end."""
        return SHORT if self.progress.share(self.plan) < self.plan.short_share else CONTEXT

    def _step(self) -> float:
        plan = self.plan
        tokens = take(self.training, self.progress.tokens, plan.batch_tokens, self.context, plan.seed)
        parts = list(_parts(tokens, plan.micro_tokens // self.context))
        total = 0.0
        for part in self.ranks.mine(parts):
            with _precision(self.device, self.bfloat16):
                loss = self.loss(part.to(self.device)) / len(parts)
            loss.backward()
            total += loss.item()
        self.ranks.sum(p.grad for p in self.model.parameters() if p.grad is not None)
        factor = rate_factor(self.progress.share(plan) + 0.5 * plan.batch_tokens / plan.budget_tokens)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * factor
            optimizer.step()
            optimizer.zero_grad()
        # One process sees its own part of the batch; times the world is its estimate of the whole.
        return total * self.ranks.world

    def _agree(self) -> None:
        """All processes go on with the first one's clock and verdicts, so that none stops alone."""
        seconds, best, stale = self.ranks.first(
            self.progress.seconds, self.progress.best, self.progress.stale
        )
        self.progress.seconds, self.progress.best, self.progress.stale = seconds, best, int(stale)

    def _check(self, losses: list[float]) -> None:
        if self.ranks.rank > 0:
            return
        loss = held_out_loss(self.model, self.held_out, self.context, bfloat16=self.bfloat16)
        self._note(loss, float(np.mean(losses)))
        # Losses at different contexts do not compare: the contest begins at full context.
        if self.context == CONTEXT:
            self._compete(loss)
        self._save("last.safetensors", whole=True)

    def _compete(self, loss: float) -> None:
        if loss < self.progress.best:
            self.progress.best, self.progress.stale = loss, 0
            self._save("best.safetensors", whole=False)
        else:
            self.progress.stale += 1

    def _note(self, held_out: float, training: float) -> None:
        curve = self.out / "curve.csv"
        row = {
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
            "context": self.context,
            "rate_factor": round(rate_factor(self.progress.share(self.plan)), 4),
            "training_loss": round(training, 4),
            "held_out_loss": round(held_out, 4),
        }
        fresh = not curve.exists()
        with curve.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(time.strftime("%H:%M:%S"), self.plan.size, row, flush=True)

    def _save(self, name: str, *, whole: bool) -> None:
        tensors = dict(self.model.state_dict())
        if whole:
            tensors = {f"model.{key}": value for key, value in tensors.items()}
            tensors |= dict(self._optimizer_tensors())
            noted = {"plan": asdict(self.plan), **asdict(self.progress)}
            (self.out / "progress.json").write_text(json.dumps(noted) + "\n")
        partial = self.out / f"{name}.partial"
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, partial)
        partial.replace(self.out / name)

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for number, optimizer in enumerate(self.optimizers):
            for position, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    yield f"optimizer.{number}.{position}.{key}", value

    def _resume(self) -> None:
        if not (self.out / "last.safetensors").exists():
            return
        saved = load_file(self.out / "last.safetensors", device=self.device)
        weights = {
            key.removeprefix("model."): value for key, value in saved.items() if key.startswith("model.")
        }
        self.model.load_state_dict(weights)
        for number, optimizer in enumerate(self.optimizers):
            full = optimizer.state_dict()
            full["state"] = _states(saved, f"optimizer.{number}.")
            optimizer.load_state_dict(full)
        noted = json.loads((self.out / "progress.json").read_text())
        noted.pop("plan")
        self.progress = Progress(**noted)


def _states(saved: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        if key.startswith(prefix):
            position, name = key.removeprefix(prefix).split(".", 1)
            states.setdefault(int(position), {})[name] = value
    return states


def _parts(tokens: Tensor, rows: int) -> Iterator[Tensor]:
    yield from tokens.split(max(1, rows))


def _precision(device: str, bfloat16: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext()


def open_tokens(folder: Path, name: str) -> Tokens:
    """A token stream, mapped from its file; uint16, (T,)."""
    return np.memmap(folder / f"{name}.bin", dtype="<u2", mode="r")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 products, compiled; as on a GPU")
    parser.add_argument("--tokens-folder", type=Path, default=Path("build/tokens"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.0, help="budget in passes over the training tokens")
    parser.add_argument("--minutes", type=float, default=math.inf, help="budget in minutes of training")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--micro-tokens", type=int, default=2048, help="tokens per forward pass")
    parser.add_argument("--rate", type=float, default=0.004, help="peak learning rate of both optimizers")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument(
        "--short-share", type=float, default=0.75, help=f"share of the run at context {SHORT}"
    )
    parser.add_argument("--check-tokens", type=int, default=524_288)
    parser.add_argument("--patience", type=int, default=6, help="checks without a better loss before the end")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2240)
    return parser.parse_args()


def main() -> None:
    """Trains and leaves best.safetensors, last.safetensors, curve.csv and progress.json in --out."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    ranks = join()
    training = open_tokens(given.tokens_folder, "training")
    plan = Plan(
        size=given.size,
        budget_tokens=int(given.epochs * len(training)),
        budget_s=given.minutes * 60,
        batch_tokens=given.batch_tokens,
        micro_tokens=given.micro_tokens,
        rate=given.rate,
        weight_decay=given.weight_decay,
        short_share=given.short_share,
        check_tokens=given.check_tokens,
        patience=given.patience,
        seed=given.seed,
    )
    print(f"{plan.size}: {parameters(SIZES[plan.size]):,} parameters, {plan}", flush=True)
    held_out = open_tokens(given.tokens_folder, "held_out")
    Trainer(plan, training, held_out, given.out, given.device, ranks, bfloat16=given.bfloat16).run()


if __name__ == "__main__":
    main()
