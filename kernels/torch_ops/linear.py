"""Products with weights in the model's type and of 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x · weight + bias.

    x [T, in]; weight [in, out], bias [out] in x's type. Returns [T, out].
    """
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def quantised_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """y = x · (weight · scales)ᵀ + bias.

    x [T, in]; weight [out, in], int8 or float8_e4m3fn; scales [out], fp32, one for each output channel;
    bias [out] in x's type. Returns [T, out] in x's type, scaled and biased in fp32. Both formats are exact
    in x's type: what is lost was lost when the weight was quantised.
    """
    y = torch.mm(x, weight.to(x.dtype).t()).float() * scales
    return (y if bias is None else y + bias).to(x.dtype)
