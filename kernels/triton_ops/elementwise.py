"""Element by element what would otherwise be several launches: the MLP's relu², and the scan's time steps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.tiles import power_of_two
from kernels.triton_ops.turns import launch_early, take_turn

_BLOCK, _WARPS = 1024, 4


@triton.jit
def relu2_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """One program for each block of numbers: 8 to a lane, a 16-byte vector in bf16."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    take_turn(EARLY)
    x = tl.maximum(tl.load(x_ptr + at, mask=at < count, other=0.0).to(tl.float32), 0.0)
    tl.store(out_ptr + at, (x * x).to(out_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def time_steps_kernel(
    dt_ptr,
    bias_ptr,
    out_ptr,
    dt_stride,
    low,
    high,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program for each token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK)
    exists = head < HEADS
    bias = tl.load(bias_ptr + head, mask=exists, other=0.0).to(tl.float32)
    take_turn(EARLY)
    x = tl.load(dt_ptr + token * dt_stride + head, mask=exists, other=0.0).to(tl.float32) + bias
    # max(x, 0) + log(1 + e), which does not overflow; by its series where 1 + e would round small results
    # away.
    e = tl.exp(-tl.abs(x))
    rest = tl.where(e < 0.05, e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - e * 0.25))), tl.log(1.0 + e))
    softplus = tl.maximum(x, 0.0) + rest
    tl.store(out_ptr + token * HEADS + head, tl.minimum(tl.maximum(softplus, low), high), mask=exists)


def relu2(x: Tensor) -> Tensor:
    """See the twin."""
    out = torch.empty_like(x)
    relu2_kernel[(-(-x.numel() // _BLOCK),)](
        x, out, x.numel(), BLOCK=_BLOCK, num_warps=_WARPS, **launch_early(x.device)
    )
    return out


def time_steps(dt: Tensor, bias: Tensor, low: float, high: float) -> Tensor:
    """See the twin. Rows may be strided."""
    tokens, heads = dt.shape
    out = torch.empty((tokens, heads), dtype=torch.float32, device=dt.device)
    time_steps_kernel[(tokens,)](
        dt,
        bias,
        out,
        dt.stride(0),
        low,
        high,
        HEADS=heads,
        BLOCK=power_of_two(heads),
        num_warps=1,
        **launch_early(dt.device),
    )
    return out
