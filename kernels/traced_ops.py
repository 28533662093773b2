"""The operations of a decode step as a compiler can trace them: no value of a tensor is looked at, no shape
is assumed, and arithmetic is spelled out, so that it is fused.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.select import Kernels


def traceable(kernels: Kernels) -> Kernels:
    """PyTorch's kernels with a decode's replaced by those below. The others can be traced as they are."""
    return replace(
        kernels,
        name="traceable",
        add_rms_norm=add_rms_norm,
        gated_group_norm=gated_group_norm,
        conv_update=conv_update,
        scan_update=scan_update,
        attention_decode=attention_decode,
    )


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `kernels.torch_ops.add_rms_norm`."""
    total = x if residual is None else x + residual
    return (_normed(total.float(), eps) * weight).type_as(x), total


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """See `kernels.torch_ops.gated_group_norm`."""
    gated = (F.silu(gate.float()) * y.float()).unflatten(1, (groups, -1))
    return (_normed(gated, eps).flatten(1) * weight).type_as(y)


def _normed(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def conv_update(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor) -> Tensor:
    """See `kernels.torch_ops.conv_update`."""
    window = torch.cat((states.index_select(0, slots), x.unsqueeze(1)), 1)
    states.index_put_((slots,), window[:, 1:])
    out = (window * weight).sum(1)
    return F.silu(out if bias is None else out + bias)


def scan_update(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, slots: Tensor
) -> Tensor:
    """See `kernels.torch_ops.scan_update`."""
    groups, exact = b.shape[1], x.float()
    # The heads of a group share B and C: [D, G, H / G, P, N].
    held = states.index_select(0, slots).float().unflatten(1, (groups, -1))
    kept = torch.exp(dt * a).unflatten(1, (groups, -1))[..., None, None]
    added = (exact * dt.unsqueeze(2)).unflatten(1, (groups, -1)).unsqueeze(-1) * b.float()[:, :, None, None]
    state = held * kept + added
    states.index_put_((slots,), state.flatten(1, 2).to(states.dtype))
    y: Tensor = (state * c.float()[:, :, None, None]).sum(-1).flatten(1, 2)
    return (y + exact * d.unsqueeze(1)).type_as(x)


def attention_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, context: Tensor
) -> Tensor:
    """See `kernels.torch_ops.attention_decode`. All are padded to the width of the table."""
    kv_heads, width = k_pages.shape[2:]
    keys, values = (pool[page_table].flatten(1, 2).float() for pool in (k_pages, v_pages))  # [D, L, KVH, hd]
    queries = q.float().unflatten(1, (kv_heads, -1)) * width**-0.5  # [D, KVH, QH / KVH, hd]
    scores = (queries.unsqueeze(1) * keys.unsqueeze(3)).sum(-1)
    within = torch.arange(keys.shape[1], device=q.device) < context.unsqueeze(1)
    weights = torch.softmax(scores.masked_fill(~within[:, :, None, None], -math.inf), 1)
    return (weights.unsqueeze(-1) * values.unsqueeze(3)).sum(1).flatten(1, 2).type_as(q)
