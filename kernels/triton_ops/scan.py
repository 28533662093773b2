"""The chunked scan in three launches, of which only one is sequential, and that one does little.

1. `scan_decay_kernel` turns the time steps to lie along the tokens, and sums their decay from each chunk's
   begin.
2. `scan_states_kernel` walks each sequence chunk by chunk with the state in registers, in fp32: one matrix
   product to a chunk. It leaves the state before each chunk for 3 (in the type of the inputs, in which 3
   multiplies), and the last one in the slot.
3. `scan_outputs_kernel` computes blocks of 64 outputs (32 before Hopper), all at once: what the state
   before the chunk gives, and the masked product with the chunk's own inputs, as attention does it.

Chunks of 128 tokens lie at absolute positions, so that a prefill that is split at a multiple of 128 gives
the same bits.

Bytes per chunk at 128 heads × 80, state 128, 8 groups, bf16: x is read twice (5.2 MB), y written (2.6), the
states written and read (5.2), B read twice and C once (0.8), time steps (0.3): 14 MB, where mamba-ssm's
five kernels move about 26, and one that kept everything in registers would move 6. That one exists only on
paper: with the outputs in the walk, the compiler needs more than 255 registers, and every chunk waits for
some ten barriers. At 8k tokens 0.9 GB are 0.21 ms at 4.3 TB/s; the work is 84 GFLOP, 0.11 ms at the peak.

No loop is pipelined in software: with more than one stage the compiler has produced wrong wgmma code in
such loops on sm_90. Other programs of the same multiprocessor hide the latency.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import PrefillIndex
from kernels.triton_ops import tiles
from kernels.triton_ops.tiles import head_and_tail, power_of_two, scan_tiles

_CHUNK = 128
_DECAY_HEADS, _DECAY_WARPS = 32, 4


@triton.jit
def scan_decay_kernel(
    dt_ptr,
    a_ptr,
    spans_ptr,
    steps_ptr,
    decay_ptr,
    tokens,
    dt_stride,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program for each chunk × block of heads × piece: turns dt to lie along the tokens, and sums its
    decay.
    """
    piece = tl.program_id(2)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    chunk = start // CHUNK + tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    here = (at >= start) & (at < start + length)
    row = first + (at - start)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = here[:, None] & (head < HEADS)[None, :]
    dt = tl.load(dt_ptr + row[:, None] * dt_stride + head[None, :], mask=inside, other=0.0).to(tl.float32)
    # Exponents are base 2: the device has no other.
    a = tl.load(a_ptr + head, mask=head < HEADS, other=0.0).to(tl.float32) * 1.4426950408889634
    decay = tl.cumsum(dt * a[None, :], 0)
    turned = head.to(tl.int64)[None, :] * tokens + row[:, None]
    tl.store(steps_ptr + turned, dt, mask=inside)
    tl.store(decay_ptr + turned, decay, mask=inside)


@triton.jit
def _walk(
    state,
    x_ptr,
    before_ptr,
    rows,
    here,
    channels,
    n,
    x_stride,
    b,
    to_end,
    whole,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Takes some channels over one chunk: stores the state before it, returns the one after it."""
    inside = (channels < WIDTH)[:, None] & (n < SIZE)[None, :]
    tl.store(before_ptr + channels[:, None] * SIZE + n[None, :], state.to(b.dtype), mask=inside)
    loaded = here[:, None] & (channels < WIDTH)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + channels[None, :], mask=loaded, other=0.0)
    added = (x.to(tl.float32) * to_end[:, None]).to(b.dtype)
    return tl.dot(tl.trans(added), b, acc=state * whole, input_precision="ieee")


@triton.jit
def scan_states_kernel(
    x_ptr,
    steps_ptr,
    decay_ptr,
    b_ptr,
    states_ptr,
    slots_ptr,
    spans_ptr,
    before_ptr,
    tokens,
    x_stride,
    b_stride,
    HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """One program for each part of a head's channels × head × piece."""
    part, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    end = start + length
    slot = tl.load(slots_ptr + piece).to(tl.int64)
    within = tl.arange(0, CHUNK)
    n = tl.arange(0, BLOCK_N)
    steps_ptr += head.to(tl.int64) * tokens
    decay_ptr += head.to(tl.int64) * tokens
    b_ptr += (head // HEADS_PER_GROUP) * SIZE
    x_ptr += head * WIDTH
    # A piece of L tokens touches fewer than L / CHUNK + 2 chunks: so many are kept apart for it.
    before_ptr += (first // CHUNK + 2 * piece) * (HEADS * WIDTH * SIZE) + head * (WIDTH * SIZE)
    state_ptr = states_ptr + (slot * HEADS + head) * (WIDTH * SIZE) + n[None, :]
    stored = states_ptr.dtype.element_ty
    channels = part * (HEAD + TAIL) + tl.arange(0, HEAD)
    exists = (channels < WIDTH)[:, None] & (n < SIZE)[None, :]
    state = tl.load(state_ptr + channels[:, None] * SIZE, mask=exists, other=0.0).to(tl.float32)
    if TAIL > 0:
        last_channels = part * (HEAD + TAIL) + HEAD + tl.arange(0, TAIL)
        last_exists = (last_channels < WIDTH)[:, None] & (n < SIZE)[None, :]
        last_state = tl.load(state_ptr + last_channels[:, None] * SIZE, mask=last_exists, other=0.0).to(
            tl.float32
        )
    for chunk in range(start // CHUNK, tl.cdiv(end, CHUNK)):
        at = chunk * CHUNK + within
        here = (at >= start) & (at < end)
        rows = first + (at - start)
        dt = tl.load(steps_ptr + rows, mask=here, other=0.0)
        decay = tl.load(decay_ptr + rows, mask=here, other=0.0)
        total = tl.load(decay_ptr + first + tl.minimum((chunk + 1) * CHUNK, end) - start - 1)
        b = tl.load(
            b_ptr + rows[:, None] * b_stride + n[None, :], mask=here[:, None] & (n < SIZE)[None, :], other=0.0
        )
        to_end = dt * tl.exp2(total - decay)
        whole = tl.exp2(total)
        state = _walk(
            state, x_ptr, before_ptr, rows, here, channels, n, x_stride, b, to_end, whole, WIDTH, SIZE
        )
        if TAIL > 0:
            last_state = _walk(
                last_state,
                x_ptr,
                before_ptr,
                rows,
                here,
                last_channels,
                n,
                x_stride,
                b,
                to_end,
                whole,
                WIDTH,
                SIZE,
            )
        before_ptr += HEADS * WIDTH * SIZE
    tl.store(state_ptr + channels[:, None] * SIZE, state.to(stored), mask=exists)
    if TAIL > 0:
        tl.store(state_ptr + last_channels[:, None] * SIZE, last_state.to(stored), mask=last_exists)


@triton.jit
def _carried(c, before_ptr, channels, n, since_begin, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """What the state before the chunk gives: [tokens, channels]."""
    inside = (channels < WIDTH)[:, None] & (n < SIZE)[None, :]
    state = tl.load(before_ptr + channels[:, None] * SIZE + n[None, :], mask=inside, other=0.0)
    return tl.dot(c, tl.trans(state), input_precision="ieee") * since_begin[:, None]


@triton.jit
def _add_mixed(y, mixing, x_ptr, rows, here, channels, x_stride, WIDTH: tl.constexpr):
    inside = here[:, None] & (channels < WIDTH)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + channels[None, :], mask=inside, other=0.0)
    return tl.dot(mixing, x, acc=y, input_precision="ieee")


@triton.jit
def scan_outputs_kernel(
    x_ptr,
    steps_ptr,
    decay_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    spans_ptr,
    before_ptr,
    y_ptr,
    tokens,
    x_stride,
    b_stride,
    c_stride,
    HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """One program for each head × block of outputs × piece. Heads that share B and C run side by side."""
    head, piece = tl.program_id(0), tl.program_id(2)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    end = start + length
    begin = (start // BLOCK + tl.program_id(1)) * BLOCK
    if begin >= end:
        return
    chunk = begin // CHUNK
    within = tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    group = head // HEADS_PER_GROUP
    steps_ptr += head.to(tl.int64) * tokens
    decay_ptr += head.to(tl.int64) * tokens
    b_ptr += group * SIZE
    x_ptr += head * WIDTH
    chunk_number = first // CHUNK + 2 * piece + (chunk - start // CHUNK)
    before_ptr += (chunk_number * HEADS + head) * (WIDTH * SIZE)
    at = begin + within
    here = (at >= start) & (at < end)
    rows = first + (at - start)
    c = tl.load(
        c_ptr + group * SIZE + rows[:, None] * c_stride + n[None, :],
        mask=here[:, None] & (n < SIZE)[None, :],
        other=0.0,
    )
    decay = tl.load(decay_ptr + rows, mask=here, other=0.0)
    since_begin = tl.exp2(decay)
    channels = tl.arange(0, HEAD)
    y = _carried(c, before_ptr, channels, n, since_begin, WIDTH, SIZE)
    if TAIL > 0:
        last_channels = HEAD + tl.arange(0, TAIL)
        last_y = _carried(c, before_ptr, last_channels, n, since_begin, WIDTH, SIZE)
    skip = tl.load(d_ptr + head).to(tl.float32)
    for key in range(chunk * CHUNK, begin + BLOCK, BLOCK):
        key_at = key + within
        key_here = (key_at >= start) & (key_at < end)
        key_rows = first + (key_at - start)
        b = tl.load(
            b_ptr + key_rows[:, None] * b_stride + n[None, :],
            mask=key_here[:, None] & (n < SIZE)[None, :],
            other=0.0,
        )
        key_dt = tl.load(steps_ptr + key_rows, mask=key_here, other=0.0)
        key_decay = tl.load(decay_ptr + key_rows, mask=key_here, other=0.0)
        scores = tl.dot(c, tl.trans(b), input_precision="ieee")
        seen = here[:, None] & (at[:, None] >= key_at[None, :])
        weights = (
            scores
            * tl.exp2(tl.where(seen, decay[:, None] - key_decay[None, :], float("-inf")))
            * key_dt[None, :]
        )
        # y has D·x: the diagonal's share.
        mixing = tl.where(at[:, None] == key_at[None, :], weights + skip, weights).to(c.dtype)
        y = _add_mixed(y, mixing, x_ptr, key_rows, key_here, channels, x_stride, WIDTH)
        if TAIL > 0:
            last_y = _add_mixed(last_y, mixing, x_ptr, key_rows, key_here, last_channels, x_stride, WIDTH)
    y_ptr += rows[:, None] * (HEADS * WIDTH) + head * WIDTH
    tl.store(y_ptr + channels[None, :], y.to(c.dtype), mask=here[:, None] & (channels < WIDTH)[None, :])
    if TAIL > 0:
        tl.store(
            y_ptr + last_channels[None, :],
            last_y.to(c.dtype),
            mask=here[:, None] & (last_channels < WIDTH)[None, :],
        )


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
    """See the twin. Rows may be strided. Chunks of 128 tokens take the place of the index's."""
    tokens, heads, width = x.shape
    groups, size = b.shape[1:]
    pieces, longest = len(index.lengths), max(index.lengths)
    tile = scan_tiles(width, wide=tiles.hopper(x.device))
    y = torch.empty((tokens, heads, width), dtype=x.dtype, device=x.device)
    steps, decay = torch.empty((2, heads, tokens), dtype=torch.float32, device=x.device)
    before = torch.empty((tokens // _CHUNK + 2 * pieces, heads, width, size), dtype=x.dtype, device=x.device)
    shape = {"HEADS": heads, "HEADS_PER_GROUP": heads // groups, "WIDTH": width, "SIZE": size}
    shape |= {"BLOCK_N": max(16, power_of_two(size)), "CHUNK": _CHUNK}
    scan_decay_kernel[(_touched(longest, _CHUNK), triton.cdiv(heads, _DECAY_HEADS), pieces)](
        dt,
        a,
        index.spans,
        steps,
        decay,
        tokens,
        dt.stride(0),
        HEADS=heads,
        CHUNK=_CHUNK,
        BLOCK_H=_DECAY_HEADS,
        num_warps=_DECAY_WARPS,
    )
    scan_states_kernel[(tile.programs(width), heads, pieces)](
        x,
        steps,
        decay,
        b,
        states,
        slots,
        index.spans,
        before,
        tokens,
        x.stride(0),
        b.stride(0),
        **shape,
        HEAD=tile.head,
        TAIL=tile.tail,
        num_warps=tile.warps,
        num_stages=1,
    )
    head, tail = head_and_tail(max(16, width))
    scan_outputs_kernel[(heads, _touched(longest, tile.block), pieces)](
        x,
        steps,
        decay,
        b,
        c,
        d,
        index.spans,
        before,
        y,
        tokens,
        x.stride(0),
        b.stride(0),
        c.stride(0),
        **shape,
        BLOCK=tile.block,
        HEAD=head,
        TAIL=tail,
        num_warps=tile.block_warps,
        num_stages=1,
    )
    return y


def _touched(length: int, tile: int) -> int:
    """The most tiles at absolute multiples of `tile` that a piece of `length` tokens touches, wherever it
    starts.
    """
    return (length + 2 * tile - 2) // tile
