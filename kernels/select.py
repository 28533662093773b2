"""Chooses the implementation for a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import torch_ops
from kernels.layout import PrefillIndex


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of every operation. Shapes are documented at the twins in kernels.torch_ops."""

    name: str
    add_rms_norm: Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor]]
    gated_group_norm: Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
    conv_prefill: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, PrefillIndex], Tensor]
    conv_update: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor], Tensor]
    scan_prefill: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, PrefillIndex], Tensor
    ]
    scan_update: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attention_prefill: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], PrefillIndex], Tensor
    ]
    attention_decode: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation that runs on the device."""
    if device.type != "cpu":
        raise ValueError(f"no kernels for device {device}: only the CPU is supported yet")
    return Kernels(
        name="torch",
        add_rms_norm=torch_ops.add_rms_norm,
        gated_group_norm=torch_ops.gated_group_norm,
        conv_prefill=torch_ops.conv_prefill,
        conv_update=torch_ops.conv_update,
        scan_prefill=torch_ops.scan_prefill,
        scan_update=torch_ops.scan_update,
        store_kv=torch_ops.store_kv,
        attention_prefill=torch_ops.attention_prefill,
        attention_decode=torch_ops.attention_decode,
    )
