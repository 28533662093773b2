"""The short causal convolution of a Mamba-2 layer, depthwise, followed by SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.layout import PrefillIndex


def conv_prefill(
    x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor, index: PrefillIndex
) -> Tensor:
    """Convolves packed prefill pieces and leaves each piece's last inputs in its slot.

    x [T, C]; weight [K, C]; bias [C]; states [slots, K−1, C], updated; slots [P]. Returns [T, C].
    """
    window = weight.shape[0]
    inputs = torch.cat([states[slots].flatten(0, 1).to(x.dtype), x])
    # The pool is a cache, not part of the graph that the demo's trainer differentiates.
    states.index_copy_(0, slots, inputs[index.conv_tail].detach().to(states.dtype))
    out = inputs.index_select(0, index.conv_rows[:, 0]) * weight[0]
    for tap in range(1, window):
        out = torch.addcmul(out, inputs.index_select(0, index.conv_rows[:, tap]), weight[tap])
    return F.silu(out if bias is None else out + bias)


def conv_update(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor) -> Tensor:
    """Convolves one token for each of D sequences, and shifts it into their slots.

    x [D, C]; weight [K, C]; bias [C]; states [slots, K−1, C], updated; slots [D]. Returns [D, C].
    """
    inputs = torch.cat([states[slots].to(x.dtype), x[:, None]], dim=1)
    states.index_copy_(0, slots, inputs[:, 1:].to(states.dtype))
    out = (inputs * weight).sum(1)
    return F.silu(out if bias is None else out + bias)
