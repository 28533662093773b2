"""Plans a device's memory from a model's config alone: weights, states, pages, and what a step needs.

No device and no checkpoint is asked; the plan holds for any that has the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels import kernels_for
from worker.engine.build import EngineOptions, page_count, prefill_tokens
from worker.engine.workspace import estimate_workspace
from worker.model.config import ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.network import Network
from worker.model.pools import Pools

_GIB = 2**30
# What NVIDIA leaves when it sizes this model for an A10G: 5 % of it, and 1.3 GiB for CUDA, the engine and its
# steps (technical report, arXiv 2508.14444, on compressing 12B to 9B).
_UNUSABLE_SHARE = 0.05
_RUNTIME_BYTES = int(1.3 * _GIB)
# Of the latter, what CUDA and its libraries take before the first step.
_CUDA_BYTES = int(0.65 * _GIB)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where a device's memory goes, in bytes.

    usable: what is left of the device after fragments, and after CUDA and a step's workspace. pages: of
    page_tokens tokens each, shared by all running sequences.
    """

    device: int
    usable: int
    workspace: int
    weights: int
    slots: int
    checkpoints: int
    slot: int
    pages: int
    page: int
    page_tokens: int

    @property
    def states(self) -> int:
        """All slots, those of checkpoints included."""
        return (self.slots + self.checkpoints) * self.slot

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that all sequences together may have."""
        return self.pages * self.page_tokens

    @property
    def free(self) -> int:
        """What nothing has a use for."""
        return self.usable - self.weights - self.states - self.pages * self.page

    def table(self) -> str:
        """One line for each share, in GiB."""
        lines = [
            ("device", self.device, ""),
            ("usable", self.usable, f"less 5 %, CUDA, and {self.workspace / 2**20:.0f} MiB for a step"),
            ("weights", self.weights, ""),
            (
                "states",
                self.states,
                f"{self.slots} slots and {self.checkpoints} checkpoints of {self.slot / 2**20:.1f} MiB",
            ),
            (
                "pages",
                self.pages * self.page,
                f"{self.pages} of {self.page_tokens} tokens: {self.kv_tokens} tokens of context",
            ),
            ("free", self.free, ""),
        ]
        return "\n".join(f"{name:8} {size / _GIB:8.2f} GiB  {note}".rstrip() for name, size, note in lines)


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of the weights, counted by asking for each as the network does when it is loaded."""
    tensors = DummyTensors(device=torch.device("meta"), dtype=dtype)
    Network(config, tensors, kernels_for(torch.device("cpu"), "torch"), dtype=dtype)
    return tensors.parameters * dtype.itemsize


def plan_memory(
    config: ModelConfig,
    device_bytes: int,
    options: EngineOptions,
    *,
    dtype: torch.dtype = torch.bfloat16,
    ssm_dtype: torch.dtype = torch.float32,
) -> MemoryPlan:
    """Divides a device's memory. Without `max_sequence_tokens` in the options, pages are for the model's
    longest.

    Raises ValueError when weights, slots and one page for each do not fit; the message says what is
    missing.
    """
    meta = torch.device("meta")
    one = Pools.allocate(
        config,
        slots=1,
        pages=1,
        page_tokens=options.page_tokens,
        dtype=dtype,
        device=meta,
        ssm_dtype=ssm_dtype,
    )
    workspace = estimate_workspace(
        config,
        tokens=max(prefill_tokens(options, "cuda")),
        sequences=options.slots,
        number_bytes=dtype.itemsize,
    )
    usable = int(device_bytes * (1 - _UNUSABLE_SHARE)) - max(_RUNTIME_BYTES, _CUDA_BYTES + workspace)
    weights = weight_bytes(config, dtype)
    least = weights + (options.slots + options.checkpoints) * one.slot_bytes + options.slots * one.page_bytes
    if least > usable:
        raise ValueError(
            f"weights, {options.slots} slots and {options.checkpoints} checkpoints need {least / _GIB:.2f}"
            f" GiB, {(least - usable) / _GIB:.2f} more than a device of {device_bytes / _GIB:.2f} GiB gives"
        )
    longest = options.max_sequence_tokens or config.max_sequence_tokens
    pages = page_count(
        usable - weights, options, longest, slot_bytes=one.slot_bytes, page_bytes=one.page_bytes
    )
    return MemoryPlan(
        device=device_bytes,
        usable=usable,
        workspace=workspace,
        weights=weights,
        slots=options.slots,
        checkpoints=options.checkpoints,
        slot=one.slot_bytes,
        pages=pages,
        page=one.page_bytes,
        page_tokens=options.page_tokens,
    )


def parse_bytes(text: str) -> int:
    """Reads a size such as 22GiB, 512MiB or 24GB. Raises ValueError.

    >>> parse_bytes("1.5GiB"), parse_bytes("24GB")
    (1610612736, 24000000000)
    """
    units = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        size = float(text.removesuffix(unit)) * units[unit]
        if not 0 < size < 2**50:
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size such as 22GiB or 512MiB") from None
    return int(size)
