"""RMS norms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Adds x to the residual stream and normalises the sum.

    x, residual [T, hidden]; weight [hidden]. Returns (normed, sum), both in x's dtype. The norm is computed
    in fp32, the weight's multiplication included. Without a residual the sum is x.
    """
    total = x if residual is None else x + residual
    normed = F.rms_norm(total.float(), weight.shape, weight.float(), eps)
    return normed.to(x.dtype), total


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """RMS norm of y · silu(gate) over each of `groups` equal groups of channels, times the weight.

    y, gate [T, inner]; weight [inner]. Gate first, then norm (Mamba-2's norm_before_gate = False), in fp32;
    returns y's dtype.
    """
    gated: Tensor = (y.float() * F.silu(gate.float())).unflatten(-1, (groups, -1))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * weight.float()).to(y.dtype)
