"""The state-space recurrence of Mamba-2 (Dao & Gu 2024, "state space duality").

For each head, with a scalar A < 0, inputs x_t [P] and B_t, C_t [N] shared by the heads of a group:

    h_t = exp(dt_t·A)·h_{t−1} + dt_t·x_t ⊗ B_t        y_t = h_t·C_t + D·x_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.layout import PrefillIndex


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
    tokens, heads, width = x.shape
    groups, size = b.shape[1:]
    per_group = heads // groups
    rows = index.chunk_rows  # [n, Q]

    def chunked(t: Tensor) -> Tensor:
        """[T, …] → [n, Q, …]; padding reads a row of zeros, so that it neither decays nor adds."""
        padded: Tensor = torch.cat([t.float(), t.new_zeros(1, *t.shape[1:], dtype=torch.float32)])
        return padded.index_select(0, rows.flatten()).view(*rows.shape, *t.shape[1:])

    weighted = chunked(x * dt[..., None]).unflatten(2, (groups, per_group))  # [n, Q, G, h, P]
    b_chunks, c_chunks = chunked(b), chunked(c)  # [n, Q, G, N]
    # decay[i] = log of the decay from the chunk's start through token i
    decay = (chunked(dt) * a.float()).cumsum(1).unflatten(2, (groups, per_group))  # [n, Q, G, h]

    # Within a chunk: y_i = Σ_{j ≤ i} (C_i·B_j) exp(decay_i − decay_j) dt_j x_j
    span = decay.permute(0, 2, 3, 1)  # [n, G, h, Q]
    gap = span[..., :, None] - span[..., None, :]
    causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=x.device).tril()
    mixing = torch.exp(gap.masked_fill(~causal, -torch.inf))  # [n, G, h, i, j]
    scores = torch.einsum("nigs,njgs->ngij", c_chunks, b_chunks)
    y = torch.einsum("nghij,njghp->nighp", scores[:, :, None] * mixing, weighted)

    # What each chunk adds to the state, and how it decays what it was given.
    to_end = torch.exp(decay[:, -1:] - decay)  # [n, Q, G, h]
    added = torch.einsum("njghp,njgs->nghps", weighted * to_end[..., None], b_chunks)
    kept = torch.exp(decay[:, -1])[..., None, None]  # [n, G, h, 1, 1]

    # Between chunks, rank by rank: all pieces that have an r-th chunk advance together.
    state = states[slots].float().unflatten(1, (groups, per_group))  # [pieces, G, h, P, N]
    before: list[Tensor] = []
    chunk = 0
    for pieces in index.chunk_ranks:
        everyone = len(pieces) == len(state)
        current = state if everyone else state.index_select(0, pieces)
        before.append(current)
        after = current * kept[chunk : chunk + len(pieces)] + added[chunk : chunk + len(pieces)]
        state = after if everyone else state.index_copy(0, pieces, after)
        chunk += len(pieces)
    # The pool is a cache, not part of the graph that the demo's trainer differentiates.
    states.index_copy_(0, slots, state.detach().flatten(1, 2).to(states.dtype))

    carried = torch.einsum("nigs,nghps->nighp", c_chunks, torch.cat(before))
    y = y + carried * torch.exp(decay)[..., None]
    out = x.new_empty(tokens + 1, heads, width, dtype=torch.float32).index_copy(
        0, rows.flatten(), y.flatten(0, 1).flatten(1, 2)
    )
    return (out[:tokens] + d.float()[:, None] * x).to(x.dtype)


def scan_update(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, slots: Tensor
) -> Tensor:
    """Advances D sequences by one token each.

    x [D, H, P]; dt [D, H], positive; a, d [H]; b, c [D, G, N]; states [slots, H, P, N], updated; slots [D].
    Returns y [D, H, P].
    """
    heads = x.shape[1]
    groups, size = b.shape[1:]
    state = states[slots].float().unflatten(1, (groups, heads // groups))  # [D, G, h, P, N]
    decay = torch.exp(dt.float() * a.float()).view(-1, groups, heads // groups, 1, 1)
    weighted = (x * dt[..., None]).float().unflatten(1, (groups, heads // groups))  # [D, G, h, P]
    state = torch.addcmul(state * decay, weighted[..., None], b.float()[:, :, None, None])
    states.index_copy_(0, slots, state.flatten(1, 2).to(states.dtype))
    y = (state * c.float()[:, :, None, None]).sum(-1).flatten(1, 2)
    return (y + d.float()[:, None] * x).to(x.dtype)
