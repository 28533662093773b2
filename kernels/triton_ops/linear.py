"""Products of few tokens, and with weights of 8 bits: these are converted to the activations' type in
registers, or in memory for many tokens.

A program takes a tile of output channels and of tokens and goes over its share of the inputs. It computes
the transposed product, weight · xᵀ: so the weight is the left operand, of which the matrix units take 64
rows, and tokens may be few. The time is that of reading the weight. Where tiles are too few to fill a
device, programs share the inputs, and a second kernel adds their sums in a fixed order. The loop is
pipelined in software.

*Weights of 16 bits, up to 32 tokens*, on Hopper, in captured steps: both operands go from memory to shared
memory and from there to the matrix units; 64 channels × 128 inputs, 4 warps, three programs to a
multiprocessor. On an H200 that takes 48, 24, 35 and 36 µs for one token of in_proj, out_proj, up_proj and
down_proj (0.89 to 0.98 of a copy's bandwidth), where PyTorch's products take 55, 27, 36 and 40; for 32
tokens 49, 27, 35 and 39, and PyTorch's 57, 29, 37 and 41. Eleven other tiles took as long or longer. Up to
32 tokens, the order of a token's sums does not depend on their number. More are left to PyTorch, as are
older devices, on which this was not measured.

*Weights of 8 bits, up to 128 tokens*: the matrix units take the weight from registers, where it was just
converted. Both formats are exact in bf16 and fp16; a channel's scale is applied once, to the sum. Many
warps do that best: two to a tile of 32 channels for up to 8 tokens, of 64 for more, with three loads under
way. On an H200 one token of in_proj takes 27 µs, 32 take 47 and 128 take 84, where memory allows 24. For
more than 64 tokens there are four warps on Hopper, whose matrix units want as many.

*Beyond* (prefill) the matrix units count, and a conversion in every tile halves their rate: on an H200,
8192 tokens of in_proj took 4.3 ms so. So the weight is converted once, with its scales, at the speed of a
copy, and PyTorch multiplies by it: 2.4 ms, of which the product has 2.1. That rounds a scaled weight to
the activations' type, which is no more than its bf16 checkpoint had lost already: 0.17 % of a weight (root
mean square), where int8 has lost 0.9 % and fp8 2.6 %. `worker.engine.workspace` counts the memory, of one
weight at a time.

Bytes: out × in for an 8-bit weight, half of bf16's; at 9B's shapes 22656 × 4480, 101 MB for in_proj; 4480
× 10240, 46 MB for out_proj; 70 MB for each of the MLP's two. The shared sums move 8 × shares × tokens ×
out more: 8 MB for 32 tokens of down_proj, most of which never leaves the second-level cache. Converted
once, a weight is also written and read in bf16: five times its bytes in all.

Instructions: a decode step's warps wait for the conversion as well. Four int8 numbers become bf16 by 2
prmt, 4 lop3 and 2 additions, as Triton does it on sm_90. Four of float8 e4m3 take 2 shifts, 3 lop3, 2 prmt
and 2 multiplications (`FP8_TO_BF16`). Triton's cast takes 2 conversions to fp16 and 4 from there to bf16,
of which a multiprocessor does 16 in a clock: with it one token of in_proj took 53 µs on an H200, and takes
27 without, as int8 does. In all a step of the loop takes 3.5 instructions for an int8 number of a lane,
3.8 for fp8, and 4.4 and 4.7 for 32 tokens.

The codes 0x7f and 0xff, which are not numbers, are read as ±480. None is stored: a weight that is not a
number makes its channel's scale none either.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import torch_ops
from kernels.triton_ops import tiles
from kernels.triton_ops.turns import launch_early, take_turn

# Beyond, converting a weight once, at the speed of a copy, takes less time than converting it on the way.
FUSED_TOKENS = 128
# Up to so many tokens a product waits for its weight alone.
FEW_TOKENS = 32


# Four float8 e4m3 numbers, $2, as two pairs of bf16. A number's bits of exponent and mantissa, put where bf16
# has its last and first of these, are that number 2^120 times smaller, subnormal ones included; multiplying
# by that, 0x7b80, is exact. Lower and upper bytes are made for all four at once, and prmt pairs them.
FP8_TO_BF16 = tl.constexpr("""{
.reg .b32 low, high, signs, first, second, power, zero;
shl.b32 low, $2, 4;
and.b32 low, low, 0xf0f0f0f0;
shr.u32 high, $2, 4;
and.b32 high, high, 0x07070707;
and.b32 signs, $2, 0x80808080;
or.b32 high, high, signs;
prmt.b32 first, low, high, 0x5140;
prmt.b32 second, low, high, 0x7362;
mov.b32 power, 0x7b807b80;
mov.b32 zero, 0x80008000;
fma.rn.bf16x2 $0, first, power, zero;
fma.rn.bf16x2 $1, second, power, zero;
}""")


@triton.jit
def _converted(stored, dtype: tl.constexpr, FP8: tl.constexpr, PACKED: tl.constexpr):
    """int8, or the bits of float8 e4m3 in uint8, as numbers; others as they are. PACKED: four at once, which
    only bf16 has.
    """
    if not FP8:
        return stored.to(dtype)
    if PACKED:
        four = tl.inline_asm_elementwise(FP8_TO_BF16, "=r,=r,r", [stored], tl.bfloat16, is_pure=True, pack=4)
        return four.to(dtype)
    # Likewise by way of fp16, whose numbers are 256 times smaller.
    bits = stored.to(tl.uint16)
    halves = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return (halves.to(tl.float32) * 256).to(dtype)


@triton.jit
def _finished(total, scales_ptr, bias_ptr, channels, exists, QUANTISED: tl.constexpr, BIASED: tl.constexpr):
    """total [channels, tokens], scaled and biased."""
    if QUANTISED:
        total = total * tl.load(scales_ptr + channels, mask=exists, other=0.0)[:, None]
    if BIASED:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
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
    QUANTISED: tl.constexpr,
    FP8: tl.constexpr,
    PACKED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each tile of tokens × tile of channels × share of the inputs. Shares that are not the
    whole write plain sums, [shares, tokens, outputs].
    """
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channels = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    share = tl.program_id(2)
    real, exists = token < tokens, channels < OUTPUTS
    x_ptr += token.to(tl.int64)[:, None] * x_stride
    take_turn(EARLY)
    weight_ptr += channels.to(tl.int64)[:, None] * INPUTS
    total = tl.zeros([BLOCK_OUT, BLOCK_TOKENS], tl.float32)
    for first in range(share * SHARE, tl.minimum(share * SHARE + SHARE, INPUTS), BLOCK_IN):
        inputs = first + tl.arange(0, BLOCK_IN)
        inside = (inputs < INPUTS)[None, :]
        stored = tl.load(weight_ptr + inputs[None, :], mask=exists[:, None] & inside, other=0)
        x = tl.load(x_ptr + inputs[None, :], mask=real[:, None] & inside, other=0.0)
        weight = _converted(stored, x.dtype, FP8, PACKED)
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    if SHARE < INPUTS:
        out_ptr += share.to(tl.int64) * tokens * OUTPUTS
    else:
        total = _finished(total, scales_ptr, bias_ptr, channels, exists, QUANTISED, BIASED)
    out_ptr += token.to(tl.int64)[:, None] * OUTPUTS + channels[None, :]
    tl.store(out_ptr, tl.trans(total).to(out_ptr.dtype.element_ty), mask=real[:, None] & exists[None, :])


@triton.jit(do_not_specialize=["tokens"])
def add_shares_kernel(
    sums_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    tokens,
    OUTPUTS: tl.constexpr,
    SHARES: tl.constexpr,
    QUANTISED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each block of channels of each token."""
    token = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channels < OUTPUTS
    # Two numbers to a lane, and the scales first: so all loads are under way together, and a program of few
    # tokens, of which a device has many at once, waits once.
    scales = 1.0
    if QUANTISED:
        scales = tl.load(scales_ptr + channels, mask=exists, other=0.0)
    take_turn(EARLY)
    total = tl.zeros([BLOCK], tl.float32)
    for share in range(SHARES):
        total += tl.load(sums_ptr + (share * tokens + token) * OUTPUTS + channels, mask=exists, other=0.0)
    total *= scales
    if BIASED:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * OUTPUTS + channels, total.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def full_weight_kernel(
    weight_ptr,
    scales_ptr,
    out_ptr,
    INPUTS: tl.constexpr,
    FP8: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each block of inputs of each channel."""
    channel = tl.program_id(1).to(tl.int64)
    inputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = inputs < INPUTS
    stored = tl.load(weight_ptr + channel * INPUTS + inputs, mask=inside, other=0)
    weight = _converted(stored, tl.float32, FP8, PACKED) * tl.load(scales_ptr + channel)
    tl.store(out_ptr + channel * INPUTS + inputs, weight.to(out_ptr.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See the twin. Rows of x may be strided; up to `FEW_TOKENS` are multiplied here, on Hopper."""
    few = len(x) <= FEW_TOKENS and x.dtype != torch.float32 and weight.stride(0) == 1
    if not few or not tiles.hopper(x.device):
        return torch_ops.linear(x, weight, bias)
    return _fused(x, weight.t(), None, bias)


def quantised_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """See the twin. Beyond `FUSED_TOKENS` the scaled weight is rounded to x's type. Rows of x may be
    strided.
    """
    if len(x) <= FUSED_TOKENS:
        return _fused(x, weight, scales, bias)
    return torch_ops.linear(x, _full_weight(weight, scales, x).t(), bias)


def _stored(weight: Tensor, x: Tensor) -> tuple[Tensor, dict[str, bool]]:
    """The weight as a kernel takes it, and how it is to be converted."""
    fp8 = weight.dtype == torch.float8_e4m3fn
    # Triton's interpreter knows no instructions.
    packed = x.dtype == torch.bfloat16 and x.device.type != "cpu"
    # A signature with float8 would not be taken by devices that cannot cast it.
    return weight.view(torch.uint8) if fp8 else weight, {"FP8": fp8, "PACKED": packed}


def _full_weight(weight: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """The scaled weight in x's type."""
    outputs, inputs = weight.shape
    stored, conversion = _stored(weight, x)
    full = torch.empty_like(stored, dtype=x.dtype)
    block = 1024
    full_weight_kernel[(-(-inputs // block), outputs)](
        stored, scales, full, INPUTS=inputs, **conversion, BLOCK=block, num_warps=4
    )
    return full


def _fused(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    if scales is None:
        tile = tiles.linear_tiles(tokens, outputs, inputs)
    else:
        tile = tiles.quantised_linear_tiles(tokens, outputs, inputs, wide=tiles.hopper(x.device))
    stored, conversion = _stored(weight, x)
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    shares = -(-inputs // tile.share)
    sums = out
    if shares > 1:
        sums = torch.empty((shares, tokens, outputs), dtype=torch.float32, device=x.device)
    of_channels = (stored if scales is None else scales, stored if bias is None else bias)
    # The programs of 8-bit products are many to a multiprocessor, and unevenly many where they begin while
    # others run: all of them early, a decode step of an int8 model took 4.0 ms on an H200 and not 3.4.
    early = launch_early(x.device) if scales is None else {"EARLY": False}
    linear_kernel[(-(-tokens // tile.tokens), -(-outputs // tile.outputs), shares)](
        x,
        stored,
        *of_channels,
        sums,
        x.stride(0),
        tokens,
        OUTPUTS=outputs,
        INPUTS=inputs,
        SHARE=tile.share,
        QUANTISED=scales is not None,
        **conversion,
        BIASED=bias is not None,
        BLOCK_OUT=tile.outputs,
        BLOCK_IN=tile.inputs,
        BLOCK_TOKENS=tile.tokens,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early,
    )
    if shares > 1:
        block = 256
        add_shares_kernel[(-(-outputs // block), tokens)](
            sums,
            *of_channels,
            out,
            tokens,
            OUTPUTS=outputs,
            SHARES=shares,
            QUANTISED=scales is not None,
            BIASED=bias is not None,
            BLOCK=block,
            num_warps=4,
            **launch_early(x.device),
        )
    return out
