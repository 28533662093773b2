"""Causal attention with grouped queries over paged keys and values. The family has no positional encoding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.layout import PrefillIndex
from kernels.torch_ops.runs import consecutive

# Past tokens that a prefill piece attends to at once: bounds the copy of their keys and values.
_PAST_BLOCK = 16384
# Decodes are padded to the longest of their group: to no more than twice their own keys and these many, about
# what another call costs on a small model.
_SPARE_KEYS = 128


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Tensor) -> None:
    """Writes keys and values k, v [T, KVH, hd] at `rows` [T] of the flattened pages [pages, page tokens, KVH,
    hd].
    """
    # The pool is a cache, not part of the graph that the demo's trainer differentiates.
    k_pages.flatten(0, 1).index_copy_(0, rows, k.detach())
    v_pages.flatten(0, 1).index_copy_(0, rows, v.detach())


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    piece_pages: tuple[Tensor, ...],
    index: PrefillIndex,
) -> Tensor:
    """Attention of packed prefill pieces; their keys and values are in the pages already.

    q [T, QH, hd]; k, v [T, KVH, hd]: those of this step; pages as in store_kv. Returns [T, QH, hd].
    """
    lengths = list(index.lengths)
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), piece_pages, index.starts, strict=True)
    out: list[Tensor] = []
    for q_piece, k_piece, v_piece, pages, start in parts:
        queries, keys, values = q_piece.transpose(0, 1), k_piece.transpose(0, 1), v_piece.transpose(0, 1)
        if start == 0:
            y = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], is_causal=True, enable_gqa=True
            )[0]
        elif q.is_cpu:
            y = _merged(queries, keys, values, k_pages, v_pages, pages, start)
        else:
            y = _masked(queries, k_pages, v_pages, pages, start)
        out.append(y.transpose(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def _merged(
    queries: Tensor, keys: Tensor, values: Tensor, k_pages: Tensor, v_pages: Tensor, pages: Tensor, start: int
) -> Tensor:
    """Attends to the present causally and to the `start` tokens of the past without a mask, block by block;
    the parts are weighed by their log-sum-exps. So no mask grows with queries × context, and none is read.

    queries [QH, T, hd]; keys, values [KVH, T, hd]: the present; pages: the sequence's. Returns [QH, T, hd].
    """
    sharing = len(queries) // len(keys)
    out, weight = _attend(
        queries, keys.repeat_interleave(sharing, 0), values.repeat_interleave(sharing, 0), causal=True
    )
    # Without a mask it does not matter whose a query is: those that share a key head are rows of one matrix.
    rows = queries.reshape(len(keys), -1, queries.shape[-1])
    out, weight = out.float().reshape(rows.shape), weight.reshape(len(keys), -1)
    for first in range(0, start, _PAST_BLOCK):
        end = min(first + _PAST_BLOCK, start)
        past_keys, past_values = (_read(pool, pages, first, end, queries) for pool in (k_pages, v_pages))
        more, more_weight = _attend(rows, past_keys, past_values, causal=False)
        out = torch.lerp(out, more.float(), torch.sigmoid(more_weight - weight).unsqueeze(-1))
        weight = torch.logaddexp(weight, more_weight)
    return out.view(queries.shape).type_as(queries)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of queries [heads, T, hd] to keys and values [heads, L, hd]: (output, log-sum-exp of each
    query's scores [heads, T]).
    """
    out: Tensor
    weight: Tensor
    # What scaled_dot_product_attention calls on a CPU; that keeps the log-sum-exps to itself.
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], keys[None], values[None], is_causal=causal
    )
    return out[0], weight[0]


def _masked(queries: Tensor, k_pages: Tensor, v_pages: Tensor, pages: Tensor, start: int) -> Tensor:
    """As _merged, on any device, with a mask of T × (start + T) booleans."""
    end = start + queries.shape[1]
    keys, values = (_read(pool, pages, 0, end, queries) for pool in (k_pages, v_pages))
    mask = torch.ones(queries.shape[1], end, dtype=torch.bool, device=queries.device).tril(start)
    y = F.scaled_dot_product_attention(
        queries[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
    )
    return y[0]


def _read(pool: Tensor, pages: Tensor, first: int, end: int, like: Tensor) -> Tensor:
    """Tokens first .. end − 1 of a sequence's keys or values [KVH, tokens, hd], in the type of `like`."""
    page_tokens = pool.shape[1]
    page = first // page_tokens
    block = pool.index_select(0, pages[page : -(-end // page_tokens)]).flatten(0, 1)
    return block[first - page * page_tokens :][: end - first].transpose(0, 1).type_as(like)


def attention_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, context: Tensor
) -> Tensor:
    """Attention of one query for each of D sequences over its pages.

    q [D, QH, hd]; page_table [D, max pages]; context [D]: keys that each attends to. Returns [D, QH, hd].
    """
    contexts: list[int] = context.tolist()
    groups = _similar(contexts)
    if len(groups) == 1:
        return _decode(q, k_pages, v_pages, page_table, contexts)
    out = torch.empty_like(q)
    for members in groups:
        at = torch.tensor(members, device=q.device)
        lengths = [contexts[member] for member in members]
        out.index_copy_(0, at, _decode(q[at], k_pages, v_pages, page_table[at], lengths))
    return out


def _similar(contexts: list[int]) -> list[list[int]]:
    """Groups sequences by the lengths of their contexts, so that padding to the longest of a group stays
    small.
    """
    if max(contexts) <= 2 * min(contexts) + _SPARE_KEYS:
        return [list(range(len(contexts)))]
    groups: list[list[int]] = []
    longest = 0
    for member in sorted(range(len(contexts)), key=contexts.__getitem__, reverse=True):
        if longest == 0 or longest > 2 * contexts[member] + _SPARE_KEYS:
            longest = contexts[member]
            groups.append([])
        groups[-1].append(member)
    return groups


def _decode(q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, contexts: list[int]) -> Tensor:
    """Attention of D sequences, padded to the longest."""
    count, _, width = q.shape
    page_tokens, kv_heads = k_pages.shape[1:3]
    longest = max(contexts)
    pages = page_table[:, : -(-longest // page_tokens)].flatten()
    # A long context is best read where it lies.
    run = consecutive(pages) if count == 1 else None
    keys, values = (
        (pool.index_select(0, pages) if run is None else pool[run])
        .view(count, -1, kv_heads, width)[:, :longest]
        .transpose(1, 2)
        .type_as(q)
        for pool in (k_pages, v_pages)
    )
    mask = None
    if min(contexts) < longest:
        lengths = torch.tensor(contexts, device=q.device).unsqueeze(1)
        mask = (torch.arange(longest, device=q.device) < lengths)[:, None, None]
    # Queries that share a key head are rows of one matrix.
    rows = q.view(count, kv_heads, -1, width)
    return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).reshape(q.shape)
