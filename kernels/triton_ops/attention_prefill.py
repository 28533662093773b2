"""Causal attention of packed prefill pieces over their pages, and the writing of keys and values into
pages.

A program takes 64 queries of one head of one piece and goes over the keys that they see, 64 at once (32
before Hopper), with the running maximum and sum of the softmax in registers (Dao et al. 2022,
"FlashAttention"). Keys before the tile need no mask, and a tile of keys looks its pages up once for each
page. The tiles of all heads that see most keys start first, so that the last to end are short.

Work: 4 × queries × keys × head_dim × heads / 2; at 8k tokens and 40 × 128, 0.69 TFLOP per layer, 2 % of
what that prefill needs in the linear layers. Keys and values are read from the second-level cache once for
each tile of queries, 10.7 GB at 64. On an H200 these tiles take 1.75 ms, and 128 queries in 8 warps, one
program to a multiprocessor where these are two, 2.06; PyTorch's attention, which knows no pages, 1.10.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import PrefillIndex
from kernels.triton_ops import tiles
from kernels.triton_ops.tiles import power_of_two
from kernels.triton_ops.turns import launch_early, take_turn

_BLOCK_M, _BLOCK_K, _WARPS, _STAGES = 64, 64, 4, 2


@triton.jit(do_not_specialize_on_alignment=["rows_ptr"])
def store_kv_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    rows_ptr,
    k_stride,
    v_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each token."""
    token = tl.program_id(0).to(tl.int64)
    take_turn(EARLY)
    row = tl.load(rows_ptr + token).to(tl.int64)
    if row < 0:
        return
    columns = tl.arange(0, BLOCK)
    exists = columns < WIDTH
    stored = k_pages_ptr.dtype.element_ty
    k = tl.load(k_ptr + token * k_stride + columns, mask=exists)
    v = tl.load(v_ptr + token * v_stride + columns, mask=exists)
    tl.store(k_pages_ptr + row * WIDTH + columns, k.to(stored), mask=exists)
    tl.store(v_pages_ptr + row * WIDTH + columns, v.to(stored), mask=exists)


@triton.jit
def _rows(table_ptr, key, end, within, PAGE: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of keys key .. key + BLOCK_K − 1 in the flattened pages; those from `end` on lie anywhere."""
    if BLOCK_K % PAGE == 0 or PAGE % BLOCK_K == 0:
        # A tile is whole pages, or a part of one: a number is looked up for each page, not for each key.
        row = tl.load(table_ptr + key // PAGE).to(tl.int64) * PAGE + key % PAGE + within
        for number in tl.static_range(1, BLOCK_K // PAGE):
            first = number * PAGE
            page = tl.load(table_ptr + key // PAGE + number, mask=key + first < end, other=0).to(tl.int64)
            row = tl.where(within < first, row, page * PAGE + (within - first))
    else:
        at = key + within
        row = tl.load(table_ptr + at // PAGE, mask=at < end, other=0).to(tl.int64) * PAGE + at % PAGE
    return row


@triton.jit
def _attend(
    q,
    best,
    weight,
    total,
    k_ptr,
    v_ptr,
    table_ptr,
    begin,
    end,
    position,
    scale,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Goes over keys begin .. end − 1. Without MASKED all of them are seen by all queries, and begin and
    end are multiples of BLOCK_K.
    """
    w = tl.arange(0, BLOCK_W)
    within = tl.arange(0, BLOCK_K)
    for key in range(begin, end, BLOCK_K):
        at = key + within
        row = _rows(table_ptr, key, end, within, PAGE, BLOCK_K) * (KV_HEADS * WIDTH)
        loaded = (w < WIDTH)[None, :]
        if MASKED:
            loaded &= (at < end)[:, None]
        k = tl.load(k_ptr + row[:, None] + w[None, :], mask=loaded, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + row[:, None] + w[None, :], mask=loaded, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            scores = tl.where(position[:, None] >= at[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1) * scale)
        shares = tl.exp2(scores * scale - higher[:, None])
        fade = tl.exp2(best - higher)
        weight = weight * fade + tl.sum(shares, 1)
        total = tl.dot(shares.to(q.dtype), v, acc=total * fade[:, None], input_precision="ieee")
        best = higher
    return best, weight, total


@triton.jit(do_not_specialize=["table_stride"])
def attention_prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    spans_ptr,
    out_ptr,
    q_stride,
    table_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program for each tile of queries × head × piece."""
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    piece = tl.program_id(2).to(tl.int64)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    begin = tile * BLOCK_M
    if begin >= length:
        return
    kv_head = head // (HEADS // KV_HEADS)
    k_ptr += kv_head * WIDTH
    v_ptr += kv_head * WIDTH
    table_ptr += piece * table_stride
    m = begin + tl.arange(0, BLOCK_M)
    w = tl.arange(0, BLOCK_W)
    inside = (m < length)[:, None] & (w < WIDTH)[None, :]
    q = tl.load(q_ptr + (first + m)[:, None] * q_stride + head * WIDTH + w[None, :], mask=inside, other=0.0)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    position = start + m
    before = (start + begin) // BLOCK_K * BLOCK_K
    end = start + tl.minimum(begin + BLOCK_M, length)
    best, weight, total = _attend(
        q, best, weight, total, k_ptr, v_ptr, table_ptr, 0, before, position, scale,
        KV_HEADS, WIDTH, PAGE, BLOCK_K, BLOCK_W, False,
    )  # fmt: skip
    best, weight, total = _attend(
        q, best, weight, total, k_ptr, v_ptr, table_ptr, before, end, position, scale,
        KV_HEADS, WIDTH, PAGE, BLOCK_K, BLOCK_W, True,
    )  # fmt: skip
    out = total / weight[:, None]
    tl.store(
        out_ptr + ((first + m) * HEADS + head)[:, None] * WIDTH + w[None, :], out.to(q.dtype), mask=inside
    )


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Tensor) -> None:
    """See the twin. Rows of k and v may be strided; a negative row is padding, and writes nothing."""
    tokens = k.shape[0]
    width = k.shape[1] * k.shape[2]
    store_kv_kernel[(tokens,)](
        k,
        v,
        k_pages,
        v_pages,
        rows,
        k.stride(0),
        v.stride(0),
        WIDTH=width,
        BLOCK=power_of_two(width),
        num_warps=4,
        **launch_early(k.device),
    )


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    piece_pages: tuple[Tensor, ...],
    index: PrefillIndex,
) -> Tensor:
    """See the twin. Rows of q may be strided. Keys and values are read from the pages, which hold this
    step's too.
    """
    tokens, heads, width = q.shape
    page_tokens, kv_heads = k_pages.shape[1:3]
    out = torch.empty((tokens, heads, width), dtype=q.dtype, device=q.device)
    attention_prefill_kernel[(heads, -(-max(index.lengths) // _BLOCK_M), len(index.lengths))](
        q,
        k_pages,
        v_pages,
        index.page_table,
        index.spans,
        out,
        q.stride(0),
        index.page_table.stride(0),
        # Exponentials are base 2.
        width**-0.5 * math.log2(math.e),
        HEADS=heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        PAGE=page_tokens,
        BLOCK_M=_BLOCK_M,
        BLOCK_K=_BLOCK_K if tiles.hopper(q.device) else 32,
        BLOCK_W=max(16, power_of_two(width)),
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return out
