"""The chunked scan in three launches, of which only one is sequential, and that one does little.

1. `scan_decay_kernel` turns the time steps to lie along the tokens, and sums their decay from each chunk's
   begin. For 2 it leaves how much of each token's input, and of the state before, is there at a chunk's end.
2. `scan_states_kernel` walks each sequence chunk by chunk with the state in registers, in fp32: one matrix
   product to a chunk. It leaves the state before each chunk for 3 (in the type of the inputs, in which 3
   multiplies), and the last one in the slot.
3. `scan_outputs_kernel` computes a chunk of outputs at once (half of one before Hopper), for all heads of a
   group one after the other, which share B, C and C · Bᵀ: what the state before the chunk gives, and the
   masked product with the chunk's own inputs, as attention does it.

Chunks of 128 tokens lie at absolute positions, so that a prefill that is split at a multiple of 128 gives
the same bits.

Bytes per chunk at 128 heads × 80, state 128, 8 groups, bf16: x is read twice (5.2 MB), y written (2.6), the
states written and read (5.2), B read twice and C once (0.8), time steps (0.4): 14 MB, where mamba-ssm's five
kernels move about 26, and one that kept everything in registers would move 6. That one exists only on paper:
with the outputs in the walk, the compiler needs more than 255 registers.

Both loops are pipelined in software, in three stages. In two the compiler sends for the next chunk, or head,
at the end of an iteration and waits for it at the begin of the next. Walk and outputs have one program to a
multiprocessor, so nothing else fills the wait. The walk fetches B once for all channels of a head, two
chunks ahead, and asks for the next chunk's x first of all, to registers. Its state stands as memory has it:
to turn it took a dozen barriers, where three are left.

On an H200 that takes 7 + 171 + 197 µs at 8k tokens, where mamba-ssm takes 887, and 10 + 328 + 198 for 32
prompts of 256, where it takes 1760. Measured and left: the walk in 128 tiles of 64 channels with the state
turned, two stages (203 and 307); in tiles of 40, two programs to a multiprocessor (about 200 and 285);
outputs in two stages (296) and in halves of a chunk, two programs to a multiprocessor, with exponentials
below the diagonal blocks factored into rows and columns (212).

No loop may carry two accumulators of different widths: for a head of 80 as 64 + 16 channels, Triton 3.6
makes wrong wgmma code of that on sm_90 (seen on the device: NaN, and other programs' memory). So the walk
takes a head of 80 as 128 channels, 48 of them of zeros, and the outputs' two sums begin anew with each head.
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


@triton.jit(do_not_specialize=["tokens"])
def scan_decay_kernel(
    dt_ptr,
    a_ptr,
    spans_ptr,
    steps_ptr,
    decay_ptr,
    to_end_ptr,
    kept_ptr,
    tokens,
    dt_stride,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program for each chunk × block of heads × piece: turns dt to lie along the tokens, and sums its
    decay. What of each token's input is left at the chunk's end, and what of the state before it, is for the
    walk.
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
    # For the walk, chunk by chunk; what lies outside the piece adds nothing.
    last = tl.minimum((chunk + 1) * CHUNK, start + length) - 1
    total = tl.sum(tl.where((at == last)[:, None], decay, 0.0), 0)
    exists = (head < HEADS) & (chunk * CHUNK < start + length)
    # A piece of L tokens touches fewer than L / CHUNK + 2 chunks: so many are kept apart for it.
    place = (first // CHUNK + 2 * piece + tl.program_id(0)) * HEADS + head
    tl.store(kept_ptr + place, tl.exp2(total), mask=exists)
    to_end = dt * tl.exp2(total[None, :] - decay)
    own = place[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    tl.store(to_end_ptr + own, to_end, mask=exists[None, :])


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["slots_ptr"])
def scan_states_kernel(
    x_ptr,
    to_end_ptr,
    kept_ptr,
    b_ptr,
    states_ptr,
    slots_ptr,
    spans_ptr,
    before_ptr,
    HEADS: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    X_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program for each head (or part of its channels) × piece. The state stands as [channels, size], as
    memory has it, so that it is stored without being turned.
    """
    part, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    slot = tl.load(slots_ptr + piece).to(tl.int64)
    # What follows is of one chunk, and moves on with it. The first may have begun before the piece.
    low, high = start % CHUNK, start % CHUNK + length
    place = (first // CHUNK + 2 * piece) * HEADS + head
    to_end_ptr += place * CHUNK
    kept_ptr += place
    first -= low
    b_ptr += first * B_STRIDE + (head // HEADS_PER_GROUP) * SIZE
    x_ptr += first * X_STRIDE + head * WIDTH + part * CHANNELS
    before_ptr += place * (WIDTH * SIZE) + part * (CHANNELS * SIZE)
    states_ptr += (slot * HEADS + head) * (WIDTH * SIZE) + part * (CHANNELS * SIZE)
    token, n, channel = tl.arange(0, CHUNK), tl.arange(0, BLOCK_N), tl.arange(0, CHANNELS)
    exists, in_size = channel < WIDTH - part * CHANNELS, n < SIZE
    held = exists[:, None] & in_size[None, :]
    of_b = token[:, None] * B_STRIDE + n[None, :]
    of_x = token[:, None] * X_STRIDE + channel[None, :]
    of_state = channel[:, None] * SIZE + n[None, :]
    here = (token >= low) & (token < high)
    x = tl.load(x_ptr + of_x, mask=here[:, None] & exists[None, :], other=0.0)
    to_end, kept = tl.load(to_end_ptr + token), tl.load(kept_ptr)
    state = tl.load(states_ptr + of_state, mask=held, other=0.0).to(tl.float32)
    for _ in tl.range(0, tl.cdiv(high, CHUNK), num_stages=STAGES):
        # Copied to shared memory in the background.
        here = (token >= low) & (token < high)
        b = tl.load(b_ptr + of_b, mask=here[:, None] & in_size[None, :], other=0.0)
        added = (tl.trans(x).to(tl.float32) * to_end[None, :]).to(b.dtype)
        keep = kept
        low, high = 0, high - CHUNK
        b_ptr += CHUNK * B_STRIDE
        x_ptr += CHUNK * X_STRIDE
        to_end_ptr += HEADS * CHUNK
        kept_ptr += HEADS
        # The next chunk's, to registers: on their way while this chunk's are multiplied.
        x = tl.load(x_ptr + of_x, mask=(token < high)[:, None] & exists[None, :], other=0.0)
        to_end = tl.load(to_end_ptr + token, mask=high > 0, other=0.0)
        kept = tl.load(kept_ptr, mask=high > 0, other=0.0)
        tl.store(before_ptr + of_state, state.to(b.dtype), mask=held)
        before_ptr += HEADS * WIDTH * SIZE
        state = tl.dot(added, b, acc=state * keep, input_precision="ieee")
    tl.store(states_ptr + of_state, state.to(states_ptr.dtype.element_ty), mask=held)


@triton.jit
def _steps_and_decay(ptr, token, here, distance):
    """The two in one load, which is large enough for the compiler to spread it over the lanes. Loaded apart,
    every lane would fetch for itself what it needs of the rows and of the columns, number by number.
    """
    at = ptr + token[:, None] + (tl.arange(0, 2) * distance)[None, :]
    return tl.split(tl.load(at, mask=here[:, None], other=0.0))


@triton.jit
def _outputs(
    c,
    mixing,
    since_begin,
    x_ptr,
    before_ptr,
    y_ptr,
    token,
    key,
    here,
    key_here,
    channel,
    n,
    x_stride,
    y_stride,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Some channels of one head: what the state before the chunk gives, and the chunk's own inputs."""
    exists = channel < WIDTH
    state = tl.load(
        before_ptr + channel[:, None] * SIZE + n[None, :],
        mask=exists[:, None] & (n < SIZE)[None, :],
        other=0.0,
    )
    x = tl.load(
        x_ptr + key[:, None] * x_stride + channel[None, :],
        mask=key_here[:, None] & exists[None, :],
        other=0.0,
    )
    y = tl.dot(c, tl.trans(state), input_precision="ieee") * since_begin[:, None]
    y = tl.dot(mixing, x, acc=y, input_precision="ieee")
    tl.store(
        y_ptr + token[:, None] * y_stride + channel[None, :],
        y.to(c.dtype),
        mask=here[:, None] & exists[None, :],
    )


@triton.jit(do_not_specialize=["tokens"])
def scan_outputs_kernel(
    x_ptr,
    steps_ptr,
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
    TOGETHER: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program for each few heads of a group, which share B and C × block of tokens × piece."""
    lead, piece = tl.program_id(0) * TOGETHER, tl.program_id(2)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    start = tl.load(spans_ptr + piece * 3 + 2)
    begin = (start // BLOCK + tl.program_id(1)) * BLOCK
    if begin >= start + length:
        return
    # What follows is of the chunk, which may have begun before the piece.
    chunk = begin // CHUNK * CHUNK
    low, high = start - chunk, start + length - chunk
    token, key = begin - chunk + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    here, key_here = (token >= low) & (token < high), (key >= low) & (key < high)
    n = tl.arange(0, BLOCK_N)
    group = lead // HEADS_PER_GROUP
    row = first - low
    c = tl.load(
        c_ptr + row * c_stride + group * SIZE + token[:, None] * c_stride + n[None, :],
        mask=here[:, None] & (n < SIZE)[None, :],
        other=0.0,
    )
    b = tl.load(
        b_ptr + row * b_stride + group * SIZE + key[:, None] * b_stride + n[None, :],
        mask=key_here[:, None] & (n < SIZE)[None, :],
        other=0.0,
    )
    scores = tl.dot(c, tl.trans(b), input_precision="ieee")
    scores = tl.where(token[:, None] >= key[None, :], scores, 0.0)
    chunk_number = first // CHUNK + 2 * piece + (chunk // CHUNK - start // CHUNK)
    before_ptr += (chunk_number * HEADS + lead) * (WIDTH * SIZE)
    steps_ptr += lead.to(tl.int64) * tokens + row
    x_ptr += row * x_stride + lead * WIDTH
    y_ptr += row * (HEADS * WIDTH) + lead * WIDTH
    distance = HEADS * tokens.to(tl.int64)  # from a head's time steps to its decay
    for head in tl.range(lead, lead + TOGETHER, num_stages=STAGES):
        key_dt, key_decay = _steps_and_decay(steps_ptr, key, key_here, distance)
        decay = key_decay
        if BLOCK < CHUNK:
            decay = tl.load(steps_ptr + distance + token, mask=here, other=0.0)
        skip = tl.load(d_ptr + head).to(tl.float32)
        # What is not seen has a score of 0, which must not meet an infinite weight.
        fade = tl.exp2(tl.minimum(decay[:, None] - key_decay[None, :], 0.0))
        weights = scores * fade * key_dt[None, :]
        # y has D·x: the diagonal's share.
        mixing = tl.where(token[:, None] == key[None, :], weights + skip, weights).to(c.dtype)
        since_begin = tl.exp2(decay)
        _outputs(
            c, mixing, since_begin, x_ptr, before_ptr, y_ptr, token, key, here, key_here,
            tl.arange(0, HEAD), n, x_stride, HEADS * WIDTH, WIDTH, SIZE,
        )  # fmt: skip
        if TAIL > 0:
            _outputs(
                c, mixing, since_begin, x_ptr, before_ptr, y_ptr, token, key, here, key_here,
                HEAD + tl.arange(0, TAIL), n, x_stride, HEADS * WIDTH, WIDTH, SIZE,
            )  # fmt: skip
        before_ptr += WIDTH * SIZE
        steps_ptr += tokens
        x_ptr += WIDTH
        y_ptr += WIDTH


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
    tile = scan_tiles(width, heads // groups, wide=tiles.hopper(x.device))
    y = torch.empty((tokens, heads, width), dtype=x.dtype, device=x.device)
    steps_and_decay = torch.empty((2, heads, tokens), dtype=torch.float32, device=x.device)
    steps, decay = steps_and_decay
    chunks = tokens // _CHUNK + 2 * pieces
    to_end = torch.empty((chunks, heads, _CHUNK), dtype=torch.float32, device=x.device)
    kept = torch.empty((chunks, heads), dtype=torch.float32, device=x.device)
    before = torch.empty((chunks, heads, width, size), dtype=x.dtype, device=x.device)
    shape = {"HEADS": heads, "HEADS_PER_GROUP": heads // groups, "WIDTH": width, "SIZE": size}
    shape |= {"BLOCK_N": max(16, power_of_two(size)), "CHUNK": _CHUNK}
    scan_decay_kernel[(_touched(longest, _CHUNK), -(-heads // _DECAY_HEADS), pieces)](
        dt,
        a,
        index.spans,
        steps,
        decay,
        to_end,
        kept,
        tokens,
        dt.stride(0),
        HEADS=heads,
        CHUNK=_CHUNK,
        BLOCK_H=_DECAY_HEADS,
        num_warps=_DECAY_WARPS,
    )
    scan_states_kernel[(-(-width // tile.channels), heads, pieces)](
        x,
        to_end,
        kept,
        b,
        states,
        slots,
        index.spans,
        before,
        **shape,
        X_STRIDE=x.stride(0),
        B_STRIDE=b.stride(0),
        CHANNELS=tile.channels,
        STAGES=tile.stages,
        num_warps=tile.warps,
    )
    head, tail = head_and_tail(max(16, width))
    scan_outputs_kernel[(heads // tile.together, _touched(longest, tile.block), pieces)](
        x,
        steps_and_decay,
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
        TOGETHER=tile.together,
        HEAD=head,
        TAIL=tail,
        STAGES=tile.block_stages,
        num_warps=tile.block_warps,
    )
    return y


def _touched(length: int, tile: int) -> int:
    """The most tiles at absolute multiples of `tile` that a piece of `length` tokens touches, wherever it
    starts.
    """
    return (length + 2 * tile - 2) // tile
