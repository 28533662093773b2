"""Chooses the implementation for a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import ModuleType

import torch
from torch import Tensor

from kernels import torch_ops
from kernels.layout import PrefillIndex


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of every operation. Shapes are documented at the twins in kernels.torch_ops."""

    name: str
    skips_padding: bool
    """Whether a negative slot or row, or a context of 0, is skipped; else it must not occur."""
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
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    quantised_linear: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    relu2: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor], Tensor]
    time_steps: Callable[[Tensor, Tensor, float, float], Tensor]


def kernels_for(device: torch.device, name: str | None = None) -> Kernels:
    """The implementation of that name, or the fastest that runs on the device: PyTorch on a CPU, Triton on
    a GPU.

    "torch" runs everywhere, "triton" on NVIDIA GPUs, and so does "mamba_ssm": that package's scans, and
    ours for the rest. Raises ValueError for another name or device, ImportError when the package is not
    installed.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"no kernels for device {device}: only cpu and cuda are supported")
    match name or ("torch" if device.type == "cpu" else "triton"):
        case "torch":
            return _of("torch", torch_ops, skips_padding=False)
        case "triton":
            from kernels import triton_ops

            return _of("triton", triton_ops, skips_padding=True)
        case "mamba_ssm":
            from kernels import mamba_ssm_ops, triton_ops

            ours = _of("mamba_ssm", triton_ops, skips_padding=False)
            return replace(
                ours, scan_prefill=mamba_ssm_ops.scan_prefill, scan_update=mamba_ssm_ops.scan_update
            )
        case other:
            raise ValueError(f"no kernels named {other!r}: torch, triton and mamba_ssm are known")


def _of(name: str, operations: ModuleType, *, skips_padding: bool) -> Kernels:
    """A module's operations, each under its own name."""
    found = {f.name: getattr(operations, f.name) for f in fields(Kernels) if hasattr(operations, f.name)}
    return Kernels(name, skips_padding, **found)
