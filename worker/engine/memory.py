"""Plans a device's memory from a model's config alone: weights, states, pages, and what a step needs.

No device and no checkpoint is asked; the plan holds for any that has the memory.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch

from kernels import kernels_for
from worker.engine.build import EngineOptions, page_count, prefill_tokens
from worker.engine.workspace import estimate_workspace
from worker.model.config import ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.pools import Pools

_GIB = 2**30
# What NVIDIA leaves when it sizes this model for an A10G: 5 % of it, and 1.3 GiB for CUDA, the engine and its
# steps (technical report, arXiv 2508.14444, on compressing 12B to 9B).
_UNUSABLE_SHARE = 0.05
_RUNTIME_BYTES = int(1.3 * _GIB)
# Of the latter, what CUDA and its libraries take before the first step.
_CUDA_BYTES = int(0.65 * _GIB)
# Far more than one step takes.
_MOST_SEQUENCES = 4096


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


def weight_bytes(config: ModelConfig, dtype: torch.dtype, weights: WeightFormat = WeightFormat.FULL) -> int:
    """Memory of the weights, counted on a network of that config that has no memory."""
    tensors = DummyTensors(device=torch.device("meta"), dtype=dtype)
    kernels = kernels_for(torch.device("cpu"), "torch")
    network = Network(config, tensors, kernels, dtype=dtype, weights=weights)
    return sum(tensor.nbytes for tensor in network.tensors())


def plan_memory(
    config: ModelConfig,
    device_bytes: int,
    options: EngineOptions,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: WeightFormat = WeightFormat.FULL,
    ssm_dtype: torch.dtype = torch.float32,
) -> MemoryPlan:
    """Divides a device's memory. Without `max_sequence_tokens` in the options, pages are for the model's
    longest.

    Raises ValueError when weights, slots and one page for each do not fit; the message says what is
    missing.
    """
    held = weight_bytes(config, dtype, weights)
    return _divide(config, device_bytes, options, held, dtype, weights, ssm_dtype)


def sequences_that_fit(
    config: ModelConfig,
    device_bytes: int,
    options: EngineOptions,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: WeightFormat = WeightFormat.FULL,
    ssm_dtype: torch.dtype = torch.float32,
) -> int:
    """The most sequences that a device holds at once, each as long as `options` allow; 0 when none does. The
    slots of `options` do not count.
    """
    longest = options.max_sequence_tokens or config.max_sequence_tokens
    held = weight_bytes(config, dtype, weights)

    def lacks_room(slots: int) -> bool:
        try:
            plan = _divide(
                config, device_bytes, replace(options, slots=slots), held, dtype, weights, ssm_dtype
            )
        except ValueError:
            return True
        return plan.kv_tokens < slots * longest

    return bisect_left(range(1, _MOST_SEQUENCES + 1), True, key=lacks_room)


def capacity(
    config: ModelConfig, device_bytes: int, options: EngineOptions, *, dtype: torch.dtype = torch.bfloat16
) -> str:
    """One line: how many sequences fit with the weights in each format."""
    counts = (
        f"{sequences_that_fit(config, device_bytes, options, dtype=dtype, weights=weights)} ({weights.value})"
        for weights in WeightFormat
    )
    longest = options.max_sequence_tokens or config.max_sequence_tokens
    return f"sequences of {longest} tokens that fit, by the weights' format: {', '.join(counts)}"


def _divide(
    config: ModelConfig,
    device_bytes: int,
    options: EngineOptions,
    held: int,
    dtype: torch.dtype,
    weights: WeightFormat,
    ssm_dtype: torch.dtype,
) -> MemoryPlan:
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
        weights=weights,
    )
    usable = int(device_bytes * (1 - _UNUSABLE_SHARE)) - max(_RUNTIME_BYTES, _CUDA_BYTES + workspace)
    least = held + (options.slots + options.checkpoints) * one.slot_bytes + options.slots * one.page_bytes
    if least > usable:
        raise ValueError(
            f"weights, {options.slots} slots and {options.checkpoints} checkpoints need {least / _GIB:.2f}"
            f" GiB, {(least - usable) / _GIB:.2f} more than a device of {device_bytes / _GIB:.2f} GiB gives"
        )
    longest = options.max_sequence_tokens or config.max_sequence_tokens
    pages = page_count(usable - held, options, longest, slot_bytes=one.slot_bytes, page_bytes=one.page_bytes)
    return MemoryPlan(
        device=device_bytes,
        usable=usable,
        workspace=workspace,
        weights=held,
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
