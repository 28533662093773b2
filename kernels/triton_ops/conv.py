"""The short causal convolution with SiLU.

Prefill: a program takes 32 tokens of one piece × 128 channels; the rows of the four taps overlap, so that
device memory is read once and the first-level cache serves the rest. Only a piece's first tile looks at the
carried inputs. A second, small launch then moves each piece's last inputs into its slot: it may not run
beside those that read the slot. Bytes: 2 × channels × 2 per token in bf16, 49 kB at 12288 channels (two for
in and out, two bytes each).

Update: a program takes one sequence × 512 channels, one 16-byte vector for each of 2 × window − 1 rows
(window − 1 in, one token in, window − 1 out, one token out: 196 kB per sequence at 12288 channels).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import PrefillIndex

_PREFILL_TOKENS, _PREFILL_CHANNELS, _PREFILL_WARPS = 32, 128, 4
_UPDATE_CHANNELS, _UPDATE_WARPS = 512, 2


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
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
    """One program for each tile of each piece × block of channels."""
    piece = tl.program_id(2)
    begin = tl.program_id(0) * BLOCK_T
    first = tl.load(spans_ptr + piece * 3).to(tl.int64)
    length = tl.load(spans_ptr + piece * 3 + 1)
    if begin >= length:
        return
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < CHANNELS
    at = begin + tl.arange(0, BLOCK_T)
    here = (at < length)[:, None] & exists[None, :]
    slot = tl.load(slots_ptr + piece).to(tl.int64)
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(WINDOW):
        # Tokens of the piece; those below 0 are carried.
        source = at + (tap - WINDOW + 1)
        values = tl.load(
            x_ptr + (first + source)[:, None] * x_stride + channels[None, :],
            mask=here & (source >= 0)[:, None],
            other=0.0,
        ).to(tl.float32)
        if begin == 0:
            carried = slot * (WINDOW - 1) + source + (WINDOW - 1)
            values += tl.load(
                states_ptr + carried[:, None] * CHANNELS + channels[None, :],
                mask=here & (source < 0)[:, None],
                other=0.0,
            ).to(tl.float32)
        weight = tl.load(weight_ptr + tap * CHANNELS + channels, mask=exists, other=0.0).to(tl.float32)
        total += values * weight[None, :]
    tl.store(out_ptr + (first + at)[:, None] * CHANNELS + channels[None, :], _silu(total), mask=here)


@triton.jit
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


@triton.jit
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
):
    """One program for each sequence × block of channels. A row is moved on as soon as the one before it was
    read.
    """
    sequence = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < CHANNELS
    out_ptr += sequence * CHANNELS + channels
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    if slot < 0:
        tl.store(out_ptr, tl.zeros([BLOCK_C], out_ptr.dtype.element_ty), mask=exists)
        return
    token = tl.load(x_ptr + sequence * x_stride + channels, mask=exists, other=0.0)
    state_ptr = states_ptr + slot * (WINDOW - 1) * CHANNELS + channels
    weight_ptr += channels
    total = token.to(tl.float32) * tl.load(weight_ptr + (WINDOW - 1) * CHANNELS, mask=exists, other=0.0).to(
        tl.float32
    )
    if HAS_BIAS:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    for tap in tl.static_range(WINDOW - 1):
        row = tl.load(state_ptr + tap * CHANNELS, mask=exists, other=0.0)
        if tap > 0:
            tl.store(state_ptr + (tap - 1) * CHANNELS, row, mask=exists)
        weight = tl.load(weight_ptr + tap * CHANNELS, mask=exists, other=0.0).to(tl.float32)
        total += row.to(tl.float32) * weight
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
    blocks = triton.cdiv(channels, _PREFILL_CHANNELS)
    conv_prefill_kernel[(triton.cdiv(max(index.lengths), _PREFILL_TOKENS), blocks, pieces)](
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
    conv_carry_kernel[(triton.cdiv(channels, _UPDATE_CHANNELS), pieces)](
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
    conv_update_kernel[(triton.cdiv(channels, _UPDATE_CHANNELS), sequences)](
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
    )
    return out
