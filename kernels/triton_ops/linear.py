"""Products with weights of 8 bits, which become the activations' type in registers.

A program takes a tile of output channels and of tokens and goes over its share of the inputs. It computes
the transposed product, weight · xᵀ: so the weight is the left operand, the one that the matrix units take
from registers, where it was just converted. Both formats are exact in bf16 and fp16; a channel's scale is
applied once, to the sum.

*Up to 64 tokens* (decode) the time is that of reading the weight: tiles of 64 channels, two warps each, with
three loads of 8 kB under way. *Beyond*, tiles of 128 channels × 128 tokens (64 before Hopper). Where these
are too few to fill a device, programs share the inputs, and a second kernel adds their sums in a fixed order.

Its loop is pipelined in software, unlike the scan's, where that went wrong on sm_90: this is the plain loop
that the compiler pipelines best, and without loads under way it would wait for more than memory.
`benchmarks.gpu` checks every tile at real shapes.

Bytes: out × in for the weight, half of bf16's; at 9B's shapes 22656 × 4480, 101 MB for in_proj; 4480 × 10240,
46 MB for out_proj; 70 MB for each of the MLP's two. The shared sums move 8 × shares × tokens × out more: 8 MB
for 32 tokens of down_proj, 32 MB for 128, most of which never leaves the second-level cache.

float8 e4m3 is a cast on Hopper. Older devices have none: there its bits, shifted, are those of an fp16
number 256 times smaller, subnormal ones included, and the scale takes the factor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops import tiles


@triton.jit
def _converted(stored, dtype: tl.constexpr, FP8: tl.constexpr, CAST: tl.constexpr):
    """int8, or the bits of float8 e4m3 in uint8, as numbers; those of fp8 without the cast are 256 times too
    small.
    """
    if not FP8:
        return stored.to(dtype)
    if CAST:
        return stored.to(tl.float8e4nv, bitcast=True).to(dtype)
    bits = stored.to(tl.uint16)
    halves = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return halves.to(dtype)


@triton.jit
def _scaled(total, scales_ptr, bias_ptr, channels, exists, FACTOR: tl.constexpr, BIASED: tl.constexpr):
    """total [channels, tokens], scaled and biased."""
    scales = tl.load(scales_ptr + channels, mask=exists, other=0.0) * FACTOR
    total = total * scales[:, None]
    if BIASED:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def quantised_linear_kernel(
    x_ptr,
    weight_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SHARE: tl.constexpr,
    FP8: tl.constexpr,
    CAST: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """One program for each tile of tokens × tile of channels × share of the inputs. Shares that are not the
    whole write plain sums, [shares, tokens, outputs].
    """
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channels = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    share = tl.program_id(2)
    real, exists = token < tokens, channels < OUTPUTS
    x_ptr += token.to(tl.int64)[:, None] * x_stride
    weight_ptr += channels.to(tl.int64)[:, None] * INPUTS
    total = tl.zeros([BLOCK_OUT, BLOCK_TOKENS], tl.float32)
    for first in range(share * SHARE, tl.minimum(share * SHARE + SHARE, INPUTS), BLOCK_IN):
        inputs = first + tl.arange(0, BLOCK_IN)
        inside = (inputs < INPUTS)[None, :]
        stored = tl.load(weight_ptr + inputs[None, :], mask=exists[:, None] & inside, other=0)
        x = tl.load(x_ptr + inputs[None, :], mask=real[:, None] & inside, other=0.0)
        weight = _converted(stored, x.dtype, FP8, CAST)
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    if SHARE < INPUTS:
        out_ptr += share.to(tl.int64) * tokens * OUTPUTS
    else:
        FACTOR: tl.constexpr = 256.0 if FP8 and not CAST else 1.0
        total = _scaled(total, scales_ptr, bias_ptr, channels, exists, FACTOR, BIASED)
    out_ptr += token.to(tl.int64)[:, None] * OUTPUTS + channels[None, :]
    tl.store(out_ptr, tl.trans(total).to(out_ptr.dtype.element_ty), mask=real[:, None] & exists[None, :])


@triton.jit
def add_shares_kernel(
    sums_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    tokens,
    OUTPUTS: tl.constexpr,
    SHARES: tl.constexpr,
    FACTOR: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each block of channels of each token."""
    token = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channels < OUTPUTS
    total = tl.zeros([BLOCK], tl.float32)
    for share in range(SHARES):
        total += tl.load(sums_ptr + (share * tokens + token) * OUTPUTS + channels, mask=exists, other=0.0)
    total *= tl.load(scales_ptr + channels, mask=exists, other=0.0) * FACTOR
    if BIASED:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * OUTPUTS + channels, total.to(out_ptr.dtype.element_ty), mask=exists)


def quantised_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """See the twin. Rows of x may be strided."""
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    fp8, cast = weight.dtype == torch.float8_e4m3fn, tiles.hopper(x.device)
    tile = tiles.linear_tiles(tokens, outputs, inputs, wide=cast)
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    shares = triton.cdiv(inputs, tile.share)
    sums = out
    if shares > 1:
        sums = torch.empty((shares, tokens, outputs), dtype=torch.float32, device=x.device)
    biased = bias is not None
    quantised_linear_kernel[(triton.cdiv(tokens, tile.tokens), triton.cdiv(outputs, tile.outputs), shares)](
        x,
        # A signature with float8 would not be taken by devices that cannot cast it.
        weight.view(torch.uint8) if fp8 else weight,
        scales,
        bias if biased else scales,
        sums,
        x.stride(0),
        tokens,
        OUTPUTS=outputs,
        INPUTS=inputs,
        SHARE=tile.share,
        FP8=fp8,
        CAST=cast,
        BIASED=biased,
        BLOCK_OUT=tile.outputs,
        BLOCK_IN=tile.inputs,
        BLOCK_TOKENS=tile.tokens,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if shares > 1:
        block = 512
        add_shares_kernel[(triton.cdiv(outputs, block), tokens)](
            sums,
            scales,
            bias if biased else scales,
            out,
            tokens,
            OUTPUTS=outputs,
            SHARES=shares,
            FACTOR=256.0 if fp8 and not cast else 1.0,
            BIASED=biased,
            BLOCK=block,
            num_warps=4,
        )
    return out
