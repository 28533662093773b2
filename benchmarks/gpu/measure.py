"""A device, its clock and its roofs."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MILLI = 1e-3


@dataclass(frozen=True, slots=True)
class Roofs:
    """What the device does at best, as measured: bytes per second of a copy (read and written both
    counted), and floating point operations per second of a bf16 matrix product.
    """

    copy: float
    matrix: float


def describe(device: torch.device) -> dict[str, str]:
    """The device and the versions that a result depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "cuda": str(torch.version.cuda),
            "triton": triton.__version__,
        }
    return found


def kernel_s(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call in seconds, each with cold caches. The host's launches hide behind the flush of
    the second-level cache before each.
    """
    if device.type == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    from triton.testing import do_bench

    return float(do_bench(call, warmup=5, rep=30, return_mode="median")) * MILLI


def step_s(call: Callable[[], object], device: torch.device, *, repeats: int = 10) -> float:
    """Median time of a step that the host waits for, as an engine does, in seconds. Two runs warm up."""
    times = []
    for _ in range(2 + (repeats if device.type == "cuda" else 1)):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Gives freed memory back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def roofs(device: torch.device) -> Roofs:
    """Measures the roofs: a copy of 2 GiB, and a product of 8192 × 8192 matrices of random numbers."""
    small = device.type == "cpu"
    source = torch.ones((1 << 20) if small else (1 << 30), dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copied_s = kernel_s(lambda: target.copy_(source), device)
    size = 256 if small else 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product_s = kernel_s(lambda: a @ b, device)
    return Roofs(copy=2 * source.nbytes / copied_s, matrix=2 * size**3 / product_s)
