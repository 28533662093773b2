"""Attention of one query per sequence over its pages, with grouped queries, split over the keys.

A program takes one key head of one sequence, and with it all queries of its group (5 at 40/8 heads, padded
to the 16 rows that a matrix product needs: every key is read once, not five times). With few sequences the
keys are split into parts, so that the device is filled; a second, small launch then weighs the parts. Their
number, a power of two, depends on the batch alone, so that a captured graph serves any context, and seven
variants any batch. Keys are fetched through the page table, 64 at once, two tiles ahead.

Bytes: 2 × key heads × head_dim × 2 per key and layer in bf16, 4 kB at 8 × 128; at 8k tokens 34 MB per
sequence and layer. On an H200 32 sequences of 8k tokens are read at 4.4 TB/s, one of 128k in 64 parts at
4.2; with half as many parts, at 3.6.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.tiles import decode_splits, power_of_two
from kernels.triton_ops.turns import launch_early, take_turn

_BLOCK_K, _WARPS, _STAGES = 64, 4, 3


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["table_ptr", "context_ptr"])
def attention_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    context_ptr,
    out_ptr,
    parts_ptr,
    sums_ptr,
    q_stride,
    table_stride,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each part of the keys × key head × sequence."""
    split, kv_head = tl.program_id(0), tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    take_turn(EARLY)
    context = tl.load(context_ptr + sequence).to(tl.int32)
    share = tl.cdiv(tl.cdiv(context, SPLITS), BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, context)
    g = tl.arange(0, BLOCK_G)
    w = tl.arange(0, BLOCK_W)
    inside = (g < GROUP)[:, None] & (w < WIDTH)[None, :]
    query = kv_head * GROUP + g
    q = tl.load(q_ptr + sequence * q_stride + query[:, None] * WIDTH + w[None, :], mask=inside, other=0.0)
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_G], tl.float32)
    total = tl.zeros([BLOCK_G, BLOCK_W], tl.float32)
    for key in range(begin, end, BLOCK_K):
        at = key + tl.arange(0, BLOCK_K)
        here = at < end
        page = tl.load(table_ptr + sequence * table_stride + at // PAGE, mask=here, other=0).to(tl.int64)
        row = (page * PAGE + at % PAGE) * (KV_HEADS * WIDTH) + kv_head * WIDTH
        loaded = here[:, None] & (w < WIDTH)[None, :]
        k = tl.load(k_ptr + row[:, None] + w[None, :], mask=loaded, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + row[:, None] + w[None, :], mask=loaded, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(here[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(best - higher)
        weight = weight * fade + tl.sum(shares, 1)
        total = tl.dot(shares.to(q.dtype), v, acc=total * fade[:, None], input_precision="ieee")
        best = higher
    if SPLITS == 1:
        out = total / tl.where(weight > 0, weight, 1.0)[:, None]
        out_row = sequence * (KV_HEADS * GROUP) + query
        tl.store(out_ptr + out_row[:, None] * WIDTH + w[None, :], out.to(q.dtype), mask=inside)
    else:
        part = (sequence * (KV_HEADS * GROUP) + query) * SPLITS + split
        tl.store(parts_ptr + part[:, None] * WIDTH + w[None, :], total, mask=inside)
        tl.store(sums_ptr + part * 2, best, mask=g < GROUP)
        tl.store(sums_ptr + part * 2 + 1, weight, mask=g < GROUP)


@triton.jit
def combine_kernel(
    parts_ptr,
    sums_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each query head of each sequence: weighs its parts by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    w = tl.arange(0, BLOCK_W)
    exists = split < SPLITS
    take_turn(EARLY)
    best = tl.load(sums_ptr + (row * SPLITS + split) * 2, mask=exists, other=float("-inf"))
    weight = tl.load(sums_ptr + (row * SPLITS + split) * 2 + 1, mask=exists, other=0.0)
    # A part may have no keys, and a padding sequence has none at all: they weigh nothing.
    fade = tl.exp2(best - tl.maximum(tl.max(best, 0), -1e30))
    total = tl.sum(weight * fade, 0)
    inside = exists[:, None] & (w < WIDTH)[None, :]
    parts = tl.load(parts_ptr + (row * SPLITS + split)[:, None] * WIDTH + w[None, :], mask=inside, other=0.0)
    out = tl.sum(parts * fade[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * WIDTH + w, out.to(out_ptr.dtype.element_ty), mask=w < WIDTH)


def attention_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, context: Tensor
) -> Tensor:
    """See the twin. Rows of q may be strided; a context of 0 is padding, and gives zeros."""
    sequences, heads, width = q.shape
    page_tokens, kv_heads = k_pages.shape[1:3]
    splits = decode_splits(sequences, kv_heads)
    out = torch.empty((sequences, heads, width), dtype=q.dtype, device=q.device)
    parts, sums = out, out
    early = launch_early(q.device)
    if splits > 1:
        parts = torch.empty((sequences, heads, splits, width), dtype=torch.float32, device=q.device)
        sums = torch.empty((sequences, heads, splits, 2), dtype=torch.float32, device=q.device)
    attention_decode_kernel[(splits, kv_heads, sequences)](
        q,
        k_pages,
        v_pages,
        page_table,
        context,
        out,
        parts,
        sums,
        q.stride(0),
        page_table.stride(0),
        # Exponentials are base 2.
        width**-0.5 * math.log2(math.e),
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        WIDTH=width,
        PAGE=page_tokens,
        SPLITS=splits,
        BLOCK_G=max(16, power_of_two(heads // kv_heads)),
        BLOCK_K=_BLOCK_K,
        BLOCK_W=max(16, power_of_two(width)),
        num_warps=_WARPS,
        num_stages=_STAGES,
        **early,
    )
    if splits > 1:
        combine_kernel[(sequences * heads,)](
            parts,
            sums,
            out,
            WIDTH=width,
            SPLITS=splits,
            BLOCK_S=power_of_two(splits),
            BLOCK_W=power_of_two(width),
            # 16 parts' numbers to a warp.
            num_warps=max(1, splits // 16),
            **early,
        )
    return out
