"""What is done to each number on its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def relu2(x: Tensor) -> Tensor:
    """The square of what is positive, of any shape, in x's dtype: the family's MLP activation."""
    return torch.relu(x).square()


def time_steps(dt: Tensor, bias: Tensor, low: float, high: float) -> Tensor:
    """The scan's time steps: softplus(dt + bias), kept within low .. high.

    dt [T, H]; bias [H]. Returns fp32.
    """
    steps = F.softplus(dt.float() + bias)
    return steps if low <= 0 and high == math.inf else steps.clamp(low, high)
