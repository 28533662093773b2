"""The short causal convolution with SiLU.

Prefill: a program takes 16 tokens of one piece × 512 channels, one 16-byte vector to a lane for each row. It
loads all its rows, and the three before them, before it uses the first: so many bytes are under way, and a
row is loaded once and not once for each tap. On an H200 that moves 2.4 TB/s, and 1.95 with a row loaded for
each tap. Programs that run side by side share rows, so that what they read is contiguous. A second, small
launch then moves each piece's last inputs into its slot: it may not run beside those that read the slot.
Bytes: 2 × channels × 2 per token in bf16, 49 kB at 12288 channels (two for in and out, two bytes each), and
3 / 16 of the half more from the second-level cache.

Update: a program takes one sequence × 512 channels, one 16-byte vector for each of 2 × window − 1 rows
(window − 1 in, one token in, window − 1 out, one token out: 196 kB per sequence at 12288 channels). It adds
the taps up in the order of prefill, and gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import PrefillIndex
from kernels.triton_ops.turns import launch_early, take_turn

_PREFILL_TOKENS, _PREFILL_CHANNELS, _PREFILL_WARPS = 16, 512, 2
_UPDATE_CHANNELS, _UPDATE_WARPS = 512, 2


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def conv_prefill_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    states_ptr,
    slots_ptr,
    spans_ptr,
    out_ptr,
    x_stride,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for each block of channels × tile of each piece: programs side by side read rows side by
    side.
    """
    piece = tl.program_id(2)
    begin = tl.program_id(1) * BLOCK_T
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    if begin >= length:
        return
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < CHANNELS
    slot = tl.load(slots_ptr + piece).to(tl.int64)
    x_ptr += (first + begin) * x_stride + channels
    out_ptr += (first + begin) * CHANNELS + channels
    # All rows are loaded before the first is used. Those below 0 are carried.
    rows = tl.tuple([])
    for number in tl.static_range(BLOCK_T + WINDOW - 1):
        at = begin + number - (WINDOW - 1)
        row_ptr = x_ptr + (number - (WINDOW - 1)) * x_stride
        row = tl.load(row_ptr, mask=exists & (at >= 0) & (at < length), other=0.0)
        if number < WINDOW - 1:
            carried = tl.load(
                states_ptr + (slot * (WINDOW - 1) + at + (WINDOW - 1)) * CHANNELS + channels,
                mask=exists & (at < 0),
                other=0.0,
            )
            row = tl.where(at < 0, carried.to(x_ptr.dtype.element_ty), row)
        rows += (row,)
    weights = tl.tuple([])
    for tap in tl.static_range(WINDOW):
        weight = tl.load(weight_ptr + tap * CHANNELS + channels, mask=exists, other=0.0)
        weights += (weight.to(tl.float32),)
    bias = tl.zeros([BLOCK_C], tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    for number in tl.static_range(BLOCK_T):
        total = bias
        for tap in tl.static_range(WINDOW):
            total += rows[number + tap].to(tl.float32) * weights[tap]
        at = begin + number
        tl.store(out_ptr + number * CHANNELS, _silu(total), mask=exists & (at < length))


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def conv_carry_kernel(
    x_ptr,
    states_ptr,
    slots_ptr,
    spans_ptr,
    x_stride,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for each piece × block of channels. A row of the slot is written after it and all before
    were read.
    """
    piece = tl.program_id(1)
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    slot = tl.load(slots_ptr + piece).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < CHANNELS
    state_ptr = states_ptr + slot * (WINDOW - 1) * CHANNELS + channels
    for row in tl.static_range(WINDOW - 1):
        source = length - (WINDOW - 1) + row
        if source < 0:
            kept = tl.load(state_ptr + (source + WINDOW - 1) * CHANNELS, mask=exists, other=0.0)
        else:
            token = tl.load(x_ptr + (first + source) * x_stride + channels, mask=exists, other=0.0)
            kept = token.to(state_ptr.dtype.element_ty)
        tl.store(state_ptr + row * CHANNELS, kept, mask=exists)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def conv_update_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    states_ptr,
    slots_ptr,
    out_ptr,
    x_stride,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each sequence × block of channels. A row is moved on as soon as the one before it was
    read.
    """
    sequence = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < CHANNELS
    out_ptr += sequence * CHANNELS + channels
    weight_ptr += channels
    weights = tl.tuple([])
    for tap in tl.static_range(WINDOW):
        weight = tl.load(weight_ptr + tap * CHANNELS, mask=exists, other=0.0)
        weights += (weight.to(tl.float32),)
    total = tl.zeros([BLOCK_C], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    take_turn(EARLY)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    if slot < 0:
        tl.store(out_ptr, tl.zeros([BLOCK_C], out_ptr.dtype.element_ty), mask=exists)
        return
    token = tl.load(x_ptr + sequence * x_stride + channels, mask=exists, other=0.0)
    state_ptr = states_ptr + slot * (WINDOW - 1) * CHANNELS + channels
    for tap in tl.static_range(WINDOW - 1):
        row = tl.load(state_ptr + tap * CHANNELS, mask=exists, other=0.0)
        if tap > 0:
            tl.store(state_ptr + (tap - 1) * CHANNELS, row, mask=exists)
        total += row.to(tl.float32) * weights[tap]
    total += token.to(tl.float32) * weights[WINDOW - 1]
    tl.store(state_ptr + (WINDOW - 2) * CHANNELS, token.to(state_ptr.dtype.element_ty), mask=exists)
    tl.store(out_ptr, _silu(total), mask=exists)


def conv_prefill(
    x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor, index: PrefillIndex
) -> Tensor:
    """See the twin. Rows of x may be strided. A window of 1 carries nothing."""
    tokens, channels = x.shape
    window = weight.shape[0]
    out = torch.empty((tokens, channels), dtype=x.dtype, device=x.device)
    pieces = len(index.lengths)
    blocks = -(-channels // _PREFILL_CHANNELS)
    conv_prefill_kernel[(blocks, -(-max(index.lengths) // _PREFILL_TOKENS), pieces)](
        x,
        weight,
        weight if bias is None else bias,
        states,
        slots,
        index.spans,
        out,
        x.stride(0),
        CHANNELS=channels,
        WINDOW=window,
        HAS_BIAS=bias is not None,
        BLOCK_T=_PREFILL_TOKENS,
        BLOCK_C=_PREFILL_CHANNELS,
        num_warps=_PREFILL_WARPS,
    )
    conv_carry_kernel[(-(-channels // _UPDATE_CHANNELS), pieces)](
        x,
        states,
        slots,
        index.spans,
        x.stride(0),
        CHANNELS=channels,
        WINDOW=window,
        BLOCK_C=_UPDATE_CHANNELS,
        num_warps=_UPDATE_WARPS,
    )
    return out


def conv_update(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, slots: Tensor) -> Tensor:
    """See the twin. Rows of x may be strided; a negative slot is padding, and gives zeros."""
    sequences, channels = x.shape
    out = torch.empty((sequences, channels), dtype=x.dtype, device=x.device)
    conv_update_kernel[(-(-channels // _UPDATE_CHANNELS), sequences)](
        x,
        weight,
        weight if bias is None else bias,
        states,
        slots,
        out,
        x.stride(0),
        CHANNELS=channels,
        WINDOW=weight.shape[0],
        HAS_BIAS=bias is not None,
        BLOCK_C=_UPDATE_CHANNELS,
        num_warps=_UPDATE_WARPS,
        **launch_early(x.device),
    )
    return out
