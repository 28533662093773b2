"""The state-space recurrence of Mamba-2 (Dao & Gu 2024, "state space duality").

For each head, with a scalar A < 0, inputs x_t [P] and B_t, C_t [N] shared by the heads of a group:

    h_t = exp(dt_t·A)·h_{t−1} + dt_t·x_t ⊗ B_t        y_t = h_t·C_t + D·x_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.layout import PrefillIndex
from kernels.torch_ops.runs import consecutive, neighbourhood, spread


def scan_prefill(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    states: Tensor,
    slots: Tensor,
    index: PrefillIndex,
) -> Tensor:
    """Runs packed prefill pieces from the states in their slots, and leaves their final states there.

    x [T, H, P]; dt [T, H], positive; a, d [H]; b, c [T, G, N]; states [slots, H, P, N], updated; slots
    [pieces]. Returns y [T, H, P] in x's dtype. Inside a chunk the recurrence is a masked matrix product;
    between chunks it is passed on in fp32. Chunks lie at absolute positions (see PrefillIndex).
    """
    heads, width = x.shape[1:]
    groups, size = b.shape[1:]
    chunks, length = index.chunks.rows.shape
    rows = index.chunks.rows.flatten()

    def chunked(t: Tensor) -> Tensor:
        return t.index_select(0, rows).float().view(chunks, length, *t.shape[1:])

    # Padding takes no time: it neither decays nor adds.
    steps = chunked(dt) * index.chunks.real  # [n, Q, H]
    weighted = chunked(x) * steps.unsqueeze(-1)  # [n, Q, H, P]
    b_chunks, c_chunks = chunked(b).transpose(1, 2), chunked(c).transpose(1, 2)  # [n, G, Q, N]
    decay = (steps * a).cumsum(1)  # log of the decay from the chunk's start through each token

    # Within a chunk: y_i = Σ_{j ≤ i} (C_i·B_j) exp(decay_i − decay_j) dt_j x_j
    by_head = decay.transpose(1, 2)
    gap = by_head.unsqueeze(-1) - by_head.unsqueeze(-2)  # [n, H, i, j]
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    mixing = torch.exp(gap.masked_fill(~causal, -torch.inf)).unflatten(1, (groups, -1))
    scores = torch.matmul(c_chunks, b_chunks.mT).unsqueeze(2)  # [n, G, 1, i, j]
    y = torch.matmul((scores * mixing).flatten(1, 2), weighted.transpose(1, 2)).transpose(1, 2)

    # What each chunk adds to the state, and how it decays what it was given.
    ends = weighted * torch.exp(decay[:, -1:] - decay).unsqueeze(-1)
    added = torch.matmul(ends.view(chunks, length, groups, -1).permute(0, 2, 3, 1), b_chunks)
    added = added.view(chunks, heads, width, size)
    kept = torch.exp(decay[:, -1]).view(chunks, heads, 1, 1)

    # Between chunks, rank by rank: all pieces that have an r-th chunk advance together.
    state = states.index_select(0, slots).float()  # [pieces, H, P, N]
    before: list[Tensor] = []
    chunk = 0
    for pieces in index.chunks.ranks:
        everyone = len(pieces) == len(state)
        current = state if everyone else state.index_select(0, pieces)
        before.append(current)
        these = slice(chunk, chunk + len(pieces))
        after = torch.addcmul(added[these], current, kept[these])
        state = after if everyone else state.index_copy(0, pieces, after)
        chunk += len(pieces)
    # The pool is a cache, not part of the graph that the demo's trainer differentiates.
    states.index_copy_(0, slots, state.detach().to(states.dtype))

    held = torch.cat(before).view(chunks, groups, -1, size)
    carried = torch.matmul(c_chunks, held.mT).transpose(1, 2).reshape(weighted.shape)  # [n, Q, H, P]
    y = torch.addcmul(y, carried, torch.exp(decay).unsqueeze(-1))
    y = y.flatten(0, 1).index_select(0, index.chunks.cells)
    return torch.addcmul(y, x.float(), d.unsqueeze(-1)).type_as(x)


def scan_update(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, slots: Tensor
) -> Tensor:
    """Advances D sequences by one token each.

    x [D, H, P]; dt [D, H], positive; a, d [H]; b, c [D, G, N]; states [slots, H, P, N], updated; slots [D].
    Returns y [D, H, P].
    """
    run = consecutive(slots)
    if run is not None:
        return _advance(x, dt, a, b, c, d, states[run])
    near = neighbourhood(slots)
    if near is not None:
        # The slots in between advance by no time: they stay as they are.
        rows, length = slots - near.start, near.stop - near.start
        x, dt, b, c = (spread(t, rows, length) for t in (x, dt, b, c))
        return _advance(x, dt, a, b, c, d, states[near]).index_select(0, rows)
    held = states.index_select(0, slots)
    y = _advance(x, dt, a, b, c, d, held)
    states.index_copy_(0, slots, held)
    return y


def _advance(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor) -> Tensor:
    """scan_update of every one of the states [D, H, P, N]."""
    count, heads, width = x.shape
    groups, size = b.shape[1:]
    state = states.float()  # itself when the pool is fp32
    state.mul_((dt * a).exp_().view(count, heads, 1, 1))
    # The rows of a group's heads share B and C.
    rows = state.view(count, groups, -1, size)
    rows.addcmul_((x * dt.unsqueeze(2)).view(count, groups, -1, 1), b.float().unsqueeze(2))
    y = torch.bmm(c.float().reshape(-1, 1, size), rows.view(count * groups, -1, size).mT)
    if state is not states:
        states.copy_(state)
    return y.view(count, heads, width).addcmul_(x.float(), d.unsqueeze(1)).type_as(x)
