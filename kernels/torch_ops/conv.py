"""The short causal convolution of a Mamba-2 layer, depthwise, followed by SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.layout import PrefillIndex
from kernels.torch_ops.runs import consecutive


def conv_prefill(
    x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor, index: PrefillIndex
) -> Tensor:
    """Convolves packed prefill pieces and leaves each piece's last inputs in its slot.

    x [T, C]; weight [K, C]; bias [C]; states [slots, K−1, C], updated; slots [P]. Returns [T, C].
    """
    strip = torch.cat([states.index_select(0, slots).flatten(0, 1).to(x.dtype), x])
    if index.conv.strip is not None:
        strip = strip.index_select(0, index.conv.strip)
    # The pool is a cache, not part of the graph that the demo's trainer differentiates.
    states.index_copy_(0, slots, strip.detach()[index.conv.tail].to(states.dtype))
    windows = len(strip) - len(weight) + 1
    out = strip[:windows] * weight[0]
    for tap in range(1, len(weight)):
        out = torch.addcmul(out, strip[tap : tap + windows], weight[tap])
    if index.conv.rows is not None:
        out = out.index_select(0, index.conv.rows)
    return F.silu(out if bias is None else out + bias)


def conv_update(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor) -> Tensor:
    """Convolves one token for each of D sequences, and shifts it into their slots.

    x [D, C]; weight [K, C]; bias [C]; states [slots, K−1, C], updated; slots [D]. Returns [D, C].
    """
    run = consecutive(slots)
    state = states.index_select(0, slots) if run is None else states[run]
    window = torch.cat((state, x.unsqueeze(1)), 1)
    if run is None:
        states.index_copy_(0, slots, window[:, 1:])
    else:
        state.copy_(window[:, 1:])
    out = window.mul_(weight).sum(1)
    if bias is not None:
        out.add_(bias)
    return F.silu(out, inplace=True)
