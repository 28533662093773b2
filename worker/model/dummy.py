"""Weights that mean nothing, for measuring a model's speed and memory from its config alone."""

from __future__ import annotations

import torch
from torch import Tensor


class DummyTensors:
    """Any tensor that a network asks for, random, scaled so that numbers stay finite, and a count of the
    numbers asked for. On the device `meta` it costs nothing.
    """

    def __init__(self, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        """device, dtype: of the tensors that will be returned."""
        self._device, self._dtype = device, dtype
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        self.parameters = 0

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Makes one tensor of that shape; see `worker.model.network.Tensors`."""
        tensor = torch.empty(shape, device=self._device, dtype=self._dtype)
        self.parameters += tensor.numel()
        if self._generator is None:
            return tensor
        if name.endswith("A_log"):
            # A in 1 .. 16, as Mamba-2 begins.
            return tensor.uniform_(0.0, 2.7, generator=self._generator)
        if name.endswith("dt_bias"):
            # Time steps about a hundredth.
            return tensor.fill_(-4.6)
        if name.endswith(("norm.weight", "norm_f.weight", ".D")):
            return tensor.fill_(1.0)
        if len(shape) == 1:
            return tensor.zero_()
        fan_in = shape[-1] if len(shape) == 2 else shape[1] * shape[2]
        return tensor.normal_(0.0, fan_in**-0.5, generator=self._generator)
