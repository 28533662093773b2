"""What each kernel computes, token by token in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight.double()


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    gated = y.double() * gate.double() * torch.sigmoid(gate.double())
    ones = torch.ones(gated.shape[-1] // groups)
    return torch.cat([rms_norm(part, ones, eps) for part in gated.chunk(groups, -1)], -1) * weight.double()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, C], weight [K, C], history [K − 1, C] → (y [T, C], the history after)."""
    inputs = torch.cat([history.double(), x.double()])
    window = len(weight)
    sums = torch.stack([(inputs[t : t + window] * weight.double()).sum(0) for t in range(len(x))])
    if bias is not None:
        sums = sums + bias.double()
    return sums * torch.sigmoid(sums), inputs[len(x) :]


@dataclass
class ScanInputs:
    """Random inputs of a scan over T tokens: H heads of width P, state size N, G groups."""

    x: Tensor  # [T, H, P]
    dt: Tensor  # [T, H]
    a: Tensor  # [H]
    b: Tensor  # [T, G, N]
    c: Tensor  # [T, G, N]
    d: Tensor  # [H]

    @staticmethod
    def draw(
        tokens: int, seed: int, *, heads: int = 6, width: int = 5, groups: int = 3, size: int = 7
    ) -> ScanInputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return ScanInputs(
            x=normal(tokens, heads, width),
            # From a thousandth to about one: from hardly any decay to nothing kept.
            dt=torch.exp(torch.rand(tokens, heads, generator=generator) * 7 - 7),
            a=-torch.exp(torch.rand(heads, generator=generator) * math.log(16)),
            b=normal(tokens, groups, size),
            c=normal(tokens, groups, size),
            d=normal(heads),
        )

    def arguments(
        self, first: int = 0, end: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The kernels' arguments, for tokens first .. end − 1."""
        part = slice(first, end)
        return self.x[part], self.dt[part], self.a, self.b[part], self.c[part], self.d

    def run(self, state: Tensor, first: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """From state [H, P, N] through tokens first .. end − 1: (y [tokens, H, P], the state after)."""
        per_group = self.x.shape[1] // self.b.shape[1]
        state = state.double()
        x, dt, a, b, c, d = (t.double() for t in self.arguments(first, end))
        outputs = []
        for t in range(len(x)):
            b_t = b[t].repeat_interleave(per_group, 0)
            c_t = c[t].repeat_interleave(per_group, 0)
            decay = torch.exp(dt[t] * a)[:, None, None]
            state = state * decay + (dt[t][:, None] * x[t])[:, :, None] * b_t[:, None, :]
            outputs.append((state * c_t[:, None, :]).sum(-1) + d[:, None] * x[t])
        return torch.stack(outputs), state


def attend(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """q [T, QH, hd] at positions start .. start + T − 1; k, v [start + T, KVH, hd] → [T, QH, hd]."""
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    for t, query in enumerate(q.double()):
        keys = k[: start + t + 1].double().repeat_interleave(repeat, 1)
        values = v[: start + t + 1].double().repeat_interleave(repeat, 1)
        weights = torch.softmax((keys * query).sum(-1) / math.sqrt(q.shape[-1]), 0)
        outputs.append((weights[..., None] * values).sum(0))
    return torch.stack(outputs)
