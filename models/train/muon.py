"""Muon (Jordan 2024) for hidden matrices: momentum whose update is made nearly orthogonal.

torch.optim.Muon orthogonalises in bfloat16, which processors without bf16 units emulate slowly;
this one uses the parameter's device to choose the format.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from train.ranks import Ranks

# The quintic's coefficients and the count of steps, as published with Muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
# Gives updates the root mean square of AdamW's, so that both take one rate (Liu et al. 2025, 2.2).
ADAM_RMS = 0.2
ALONE = Ranks()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates; parameters must have two dimensions."""

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.ranks = ranks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever evaluated
        """Updates every parameter; all must have a gradient."""
        for group in self.param_groups:
            weights = group["params"]
            mixed = [self._mixed(weight, group["momentum"]) for weight in weights]
            for weight, direction in zip(weights, self._directions(mixed), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * ADAM_RMS * max(weight.shape) ** 0.5)

    def _mixed(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """The gradient mixed with its momentum, in Nesterov's way."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(buffer, momentum)

    def _directions(self, mixed: list[Tensor]) -> list[Tensor]:
        """Each matrix orthogonalised, by one of the processes."""
        if self.ranks.world == 1:
            return [orthogonalised(matrix) for matrix in mixed]
        directions = [torch.zeros_like(matrix) for matrix in mixed]
        for number in self.ranks.mine(range(len(mixed))):
            directions[number] = orthogonalised(mixed[number])
        self.ranks.sum(directions)
        return directions


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with all singular values moved to about one, by Newton-Schulz steps; same shape."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(a * x, torch.addmm(b * square, square, square, alpha=c), x)
    return (x.T if tall else x).to(matrix.dtype)
