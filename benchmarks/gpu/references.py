"""What each kernel computes, in float64 and step by step, for whole batches of rows at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """x [T, width] → [T, width]."""
    parts = x.double().unflatten(-1, (groups, -1))
    scaled = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    normed: Tensor = scaled.flatten(-2) * weight.double()
    return normed


def gated_group_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """y, gate [T, inner] → [T, inner]."""
    return rms_norm(y.double() * F.silu(gate.double()), weight, eps, groups)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, C], weight [K, C], history [K − 1, C] → (y [T, C], the history after)."""
    inputs = torch.cat([history.double(), x.double()])
    total = bias.double() + sum(
        (inputs[tap : tap + len(x)] * row.double() for tap, row in enumerate(weight)), start=torch.zeros(())
    )
    return F.silu(total), inputs[len(x) :]


def scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x [T, H, P], dt [T, H], b and c [T, G, N], state [H, P, N] → (y [T, H, P], the state after)."""
    per_group = x.shape[1] // b.shape[1]
    x, dt, a, d, state = (t.double() for t in (x, dt, a, d, state))
    b, c = (t.double().repeat_interleave(per_group, 1) for t in (b, c))
    decay, added = torch.exp(dt * a), dt[..., None] * x
    outputs = []
    for t in range(len(x)):
        state = state * decay[t, :, None, None] + added[t, :, :, None] * b[t, :, None, :]
        outputs.append(torch.einsum("hpn,hn->hp", state, c[t]))
    return torch.stack(outputs) + d[:, None] * x, state


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last T of L positions: q [T, QH, hd], k and v [L, KVH, hd] → [T, QH, hd]."""
    repeat = q.shape[1] // k.shape[1]
    keys, values = (t.double().repeat_interleave(repeat, 1) for t in (k, v))
    scores = torch.einsum("thd,lhd->htl", q.double(), keys) * q.shape[-1] ** -0.5
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    return torch.einsum("htl,lhd->thd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)


def quantised_linear(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """x [T, in], weight [out, in], scales [out] → [T, out]."""
    return x.double() @ (weight.double() * scales.double()[:, None]).t()


def sample(
    logits: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor, random: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel's arguments → (ids [n], how near a border lies, as a share of the mass [n])."""
    weights = torch.softmax(logits.double() / temperature.double()[:, None], -1)
    ordered = weights.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(weights.shape[1], device=logits.device)
    share, most = top_p.double()[:, None], top_k.long()[:, None]
    kept = ((before < share) | (share >= 1)) & ((rank < most) | (most == 0))
    least = torch.where(kept, ordered, torch.inf).amin(-1, keepdim=True)
    upto = torch.where(weights >= least, weights, 0).cumsum(-1)
    target = upto[:, -1:] * random.double()[:, None]
    of_draw = ((upto - target).abs() / upto[:, -1:]).amin(-1)
    of_nucleus = torch.where(share < 1, (before - share).abs(), 1.0).amin(-1)
    ids = torch.searchsorted(upto, target, right=True).squeeze(1)
    return ids, torch.minimum(of_draw, of_nucleus)
