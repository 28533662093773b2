"""Slots and pages are used where they lie in a pool when they lie together: on a CPU, gathering and
scattering states costs more than the arithmetic.
"""

from __future__ import annotations

from torch import Tensor


def consecutive(places: Tensor) -> slice | None:
    """Slots or pages [n] as a slice, if they follow each other in order."""
    if not places.is_cpu:  # asking a device would wait for it
        return None
    numbers: list[int] = places.tolist()
    first, end = numbers[0], numbers[0] + len(numbers)
    return slice(first, end) if numbers == list(range(first, end)) else None


def neighbourhood(places: Tensor) -> slice | None:
    """All from the least to the greatest of places [n], if these are at least half of them."""
    if not places.is_cpu:
        return None
    numbers: list[int] = places.tolist()
    first, end = min(numbers), max(numbers) + 1
    return slice(first, end) if end - first <= 2 * len(numbers) else None


def spread(t: Tensor, rows: Tensor, length: int) -> Tensor:
    """t [n, …] at `rows` [n] of a tensor [length, …] that is zero elsewhere."""
    return t.new_zeros(length, *t.shape[1:]).index_copy_(0, rows, t)
