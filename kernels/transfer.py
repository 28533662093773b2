"""How what the host knows gets to a device without anybody waiting.

A copy from ordinary memory makes the host wait until the device has done all that it was given before: only
then would it launch the next kernel. From pinned memory the device copies in its turn, and the host goes on.
The pinned memory may be let go of at once: torch's host allocator notes on which stream a copy reads it, and
hands it out again only when that copy is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

# Triton compiles a kernel anew for a pointer that is no multiple of it.
_ALIGNMENT = 16


def is_gpu(device: torch.device) -> bool:
    """Whether a device copies and computes by itself, while the host goes on."""
    return device.type == "cuda"


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """The values, which are on the host, where a GPU may copy them from while the host goes on; for another
    device they stay where they are.
    """
    return values.pin_memory() if is_gpu(device) else values


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values, which are on the host, on a device: ready for what is launched from now on."""
    return pinned(values, device).to(device, non_blocking=True)


def on_host(numbers: Sequence[object]) -> Tensor:
    """Whole numbers, int64. By way of NumPy, which reads lists several times as fast."""
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def send_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, int64."""
    return send(on_host(numbers), device)


def send_all(values: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Sends tensors of any shapes and types in one copy, since each takes its time on the way."""
    if device.type == "cpu":
        return values
    places = list(accumulate((-(-v.nbytes // _ALIGNMENT) * _ALIGNMENT for v in values), initial=0))
    packed = torch.empty(places[-1], dtype=torch.uint8)
    for value, place in zip(values, places, strict=False):
        packed[place : place + value.nbytes] = value.reshape(-1).view(torch.uint8)
    sent = send(packed, device)
    return [
        sent[begin:end][: value.nbytes].view(value.dtype).view(value.shape)
        for value, (begin, end) in zip(values, pairwise(places), strict=True)
    ]
