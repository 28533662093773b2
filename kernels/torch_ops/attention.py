"""Causal attention with grouped queries over paged keys and values. The family has no positional encoding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.layout import PrefillIndex

# Rows of queries attended to at once when a piece has a context: bounds the mask to this × context booleans.
_QUERY_BLOCK = 512


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Tensor) -> None:
    """Writes keys and values k, v [T, KVH, hd] at `rows` [T] of the flattened pages [pages, page tokens, KVH,
    hd].
    """
    k_pages.flatten(0, 1).index_copy_(0, rows, k.detach().to(k_pages.dtype))
    v_pages.flatten(0, 1).index_copy_(0, rows, v.detach().to(v_pages.dtype))


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
    out: list[Tensor] = []
    lengths = list(index.lengths)
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), piece_pages, index.starts, strict=True)
    for q_piece, k_piece, v_piece, pages, start in parts:
        queries = q_piece.transpose(0, 1)
        if start == 0:
            keys, values = k_piece.transpose(0, 1), v_piece.transpose(0, 1)
            y = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], is_causal=True, enable_gqa=True
            )
            out.append(y[0].transpose(0, 1))
            continue
        end = start + len(q_piece)
        keys = k_pages[pages].flatten(0, 1)[:end].to(q.dtype).transpose(0, 1)
        values = v_pages[pages].flatten(0, 1)[:end].to(q.dtype).transpose(0, 1)
        for first in range(0, len(q_piece), _QUERY_BLOCK):
            block = queries[:, first : first + _QUERY_BLOCK]
            seen = start + first + block.shape[1]
            mask = torch.ones(block.shape[1], seen, dtype=torch.bool, device=q.device).tril(start + first)
            y = F.scaled_dot_product_attention(
                block[None], keys[None, :, :seen], values[None, :, :seen], attn_mask=mask, enable_gqa=True
            )
            out.append(y[0].transpose(0, 1))
    return torch.cat(out)


def attention_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, context: Tensor
) -> Tensor:
    """Attention of one query for each of D sequences over its pages.

    q [D, QH, hd]; page_table [D, max pages]; context [D]: keys that each attends to. Returns [D, QH, hd].
    """
    keys = k_pages[page_table].flatten(1, 2).transpose(1, 2).to(q.dtype)  # [D, KVH, L, hd]
    values = v_pages[page_table].flatten(1, 2).transpose(1, 2).to(q.dtype)
    mask = torch.arange(keys.shape[2], device=q.device) < context[:, None]
    y = F.scaled_dot_product_attention(
        q[:, :, None], keys, values, attn_mask=mask[:, None, None], enable_gqa=True
    )
    return y[:, :, 0]
