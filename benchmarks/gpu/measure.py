"""A device, its clock and its roofs."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Several times the second-level cache of any device.
_PAST_CACHES = 256 << 20
_ROUNDS = 5


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
    """Time of a call in seconds, as it takes in a graph, with cold caches.

    One graph reads more than the second-level cache holds and makes the call, many times; another only reads.
    The time is their difference, so that it has no launch by the host in it, and what a call leaves to be
    written back is counted. What cannot be captured is launched by the host instead.
    """
    call()
    about_s = _elapsed_s(call, device)
    if device.type == "cpu":
        return about_s
    times = max(3, min(20, int(0.01 / about_s)))
    past_caches = torch.zeros(_PAST_CACHES // 4, device=device)
    with_call = _repeated(lambda: (past_caches.sum(), call()), times, device)
    without = _repeated(past_caches.sum, times, device)
    pairs = [(_elapsed_s(with_call, device), _elapsed_s(without, device)) for _ in range(1 + _ROUNDS)]
    return statistics.median(more - less for more, less in pairs[1:]) / times


def _repeated(call: Callable[[], object], times: int, device: torch.device) -> Callable[[], object]:
    """What makes a call so many times: a graph, where it can be captured."""

    def repeat() -> None:
        for _ in range(times):
            call()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            repeat()
    except RuntimeError:
        synchronize(device)
        return repeat
    return graph.replay


def _elapsed_s(call: Callable[[], object], device: torch.device) -> float:
    """Time until the device has done a call, in seconds, on the host's clock."""
    synchronize(device)
    began_s = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began_s


def step_s(call: Callable[[], object], device: torch.device, *, repeats: int = 10) -> float:
    """Median time of a step that the host waits for, as an engine does, in seconds. Two runs warm up."""
    times = [_elapsed_s(call, device) for _ in range(2 + (repeats if device.type == "cuda" else 1))]
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
    """Measures the roofs: 2 GiB read and as many written, and a product of 8192 × 8192 matrices of random
    numbers.
    """
    small = device.type == "cpu"
    source = torch.ones((1 << 20) if small else (1 << 30), dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    # In a graph a plain copy is left to the copy engines, which are slower than a kernel.
    copied_s = kernel_s(lambda: torch.neg(source, out=target), device)
    size = 256 if small else 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product_s = kernel_s(lambda: a @ b, device)
    return Roofs(copy=2 * source.nbytes / copied_s, matrix=2 * size**3 / product_s)
