"""Projections y = x·weight + bias, with weights as they were published or quantised to 8 bits.

Only weights are quantised, each output channel with a scale of its own: what a decode step waits for is
reading them, and what a small device lacks is room for them. Numbers are computed in the model's type as
before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from kernels import Kernels, torch_ops


class WeightFormat(Enum):
    """How the weights of the layers' projections are held.

    Embeddings, the head, convolutions, norms and the scan's parameters are always held in full. Of a 9B
    model the projections are 87 %; an error in the head's logits would go straight into the choice of a
    token, and all else is small.
    """

    FULL = "full"
    """In the model's number type."""
    INT8 = "int8"
    """Whole numbers from −127 to 127 times the channel's scale."""
    FP8 = "fp8"
    """float8 e4m3 times the channel's scale: 3 bits of mantissa at any size."""


# From so many rows on, a packed product takes less time than a plain one.
_PACKED_ROWS = 16

_STORED = {WeightFormat.INT8: torch.int8, WeightFormat.FP8: torch.float8_e4m3fn}
_LARGEST = {WeightFormat.INT8: 127.0, WeightFormat.FP8: 448.0}


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection with its weight in the model's type; weight [in, out]."""

    weight: Tensor
    bias: Tensor | None
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """The kernel for captured steps: see `kernels.torch_ops.linear`. Where the host launches a step one by
    one, it waits for launches, and PyTorch's takes a fourth of the time of one by Triton.
    """

    @staticmethod
    def prepare(weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Linear:
        """From a published weight [out, in]. Products with few rows, as in decode, are fastest on a CPU with
        rows of the transposed weight contiguous in fp32, and with the weight as it is in bf16.
        """
        weight = weight.t()
        contiguous = weight.contiguous() if weight.dtype == torch.float32 else weight
        return Linear(contiguous, bias, kernels.linear)

    def __call__(self, x: Tensor, captured: bool = False) -> Tensor:
        multiply = self.multiply if captured else torch_ops.linear
        return multiply(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class QuantisedLinear:
    """A projection with a weight of 8 bits; weight [out, in], int8 or float8_e4m3fn, scales [out], fp32."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    multiply: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """The kernel: see `kernels.torch_ops.linear`."""

    @staticmethod
    def prepare(
        weight: Tensor, bias: Tensor | None, weights: WeightFormat, kernels: Kernels
    ) -> QuantisedLinear:
        """From a published weight [out, in]. A channel's scale makes its largest number the format's."""
        exact = weight.float()
        largest = _LARGEST[weights]
        # A channel of zeros keeps its zeros with any scale.
        scales = exact.abs().amax(1).div(largest).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = exact / scales[:, None]
        if weights is WeightFormat.INT8:
            scaled = scaled.round_()
        stored = scaled.clamp_(-largest, largest).to(_STORED[weights])
        return QuantisedLinear(stored, scales, bias, kernels.quantised_linear)

    def __call__(self, x: Tensor, captured: bool = False) -> Tensor:
        return self.multiply(x, self.weight, self.scales, self.bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A projection on a CPU in fp32 that also holds its weight as oneDNN wants it: with many rows, as in
    prefill, that takes half the time of a plain product, which in turn begins sooner.
    """

    plain: Linear
    packed: Tensor

    @staticmethod
    def prepare(weight: Tensor, bias: Tensor | None, kernels: Kernels) -> PackedLinear:
        """From a published weight [out, in]."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return PackedLinear(Linear.prepare(weight, bias, kernels), packed)

    def __call__(self, x: Tensor, captured: bool = False) -> Tensor:
        if len(x) < _PACKED_ROWS:
            return self.plain(x)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.plain.bias, "none", [], "")
        return product


Projection = Linear | PackedLinear | QuantisedLinear


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by this weight. A packed one is a copy, which nothing differentiates."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not weight.requires_grad
        and torch.backends.mkldnn.is_available()
    )


def projection(weight: Tensor, bias: Tensor | None, weights: WeightFormat, kernels: Kernels) -> Projection:
    """A projection in the chosen format, from a published weight [out, in]."""
    if weights is WeightFormat.FULL:
        return (PackedLinear if _packs(weight) else Linear).prepare(weight, bias, kernels)
    return QuantisedLinear.prepare(weight, bias, weights, kernels)
