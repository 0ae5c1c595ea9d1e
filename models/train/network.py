"""The Llama architecture with transformers' parameter names, so that weights move without renaming.

Letters: B sequences, T tokens, D hidden width, H heads, K head size, F feed-forward width, V entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 4096
CONTEXT = 1024
ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Size:
    """One member's shape: hidden width D, layers, heads H (D divisible by H), feed-forward width F."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int


SIZES = {
    "fast": Size(hidden=96, layers=2, heads=3, feed_forward=256),
    "balanced": Size(hidden=128, layers=4, heads=4, feed_forward=384),
    "accurate": Size(hidden=192, layers=6, heads=6, feed_forward=512),
}


class RmsNorm(nn.Module):
    """Scales each vector to a root mean square of one, times a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, NORM_EPSILON)


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021, the rotate-half form)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj = nn.Linear(size.hidden, size.hidden, bias=False)
        self.k_proj = nn.Linear(size.hidden, size.hidden, bias=False)
        self.v_proj = nn.Linear(size.hidden, size.hidden, bias=False)
        self.o_proj = nn.Linear(size.hidden, size.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) and the rotary tables (T, K) to (B, T, D)."""
        shape = (x.shape[0], x.shape[1], self.heads, -1)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)  # B, H, T, K
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(x.shape))
        return out


class FeedForward(nn.Module):
    """The gated feed-forward layer SwiGLU (Shazeer 2020)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.feed_forward, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.feed_forward, bias=False)
        self.down_proj = nn.Linear(size.feed_forward, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(size.hidden)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = RmsNorm(size.hidden)
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, D) and the rotary tables (T, K) to (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = RmsNorm(size.hidden)


class Llama(nn.Module):
    """A decoder whose output weights are its embedding (tied)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.model = Trunk(size)
        cos, sin = rotary_tables(CONTEXT, size.hidden // size.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(size.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to logits (B, T, V)."""
        x = self.model.embed_tokens(tokens)
        steps = tokens.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:steps], self.sin[:steps])
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean nats per token of predicting tokens[:, 1:]; token ids (B, T + 1)."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), tokens[:, 1:].reshape(-1))

    @torch.no_grad()
    def _initialise(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # Deep sums grow with the number of branches, so each branch ends smaller (GPT-2).
            closing = name.endswith(("o_proj.weight", "down_proj.weight"))
            spread = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.5
            parameter.normal_(std=spread / (2 * layers) ** 0.5 if closing else spread)


def rotary_tables(steps: int, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (T, K), in float32."""
    frequency = ROTARY_BASE ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    angle = torch.outer(torch.arange(steps, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of the head's two halves by its position's angle; (B, H, T, K)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


def parameters(size: Size) -> int:
    """The number of trained parameters; the tied embedding counts once."""
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.feed_forward + 2 * size.hidden
    return VOCABULARY * size.hidden + size.layers * layer + size.hidden
