"""States are used where they lie in a pool when their slots allow it: on a CPU, gathering and scattering them
costs more than the arithmetic.
"""

from __future__ import annotations

from torch import Tensor


def consecutive(slots: Tensor) -> slice | None:
    """The slots [D] as a slice if they follow each other in order."""
    if not slots.is_cpu:  # asking a device would wait for it
        return None
    numbers: list[int] = slots.tolist()
    first, end = numbers[0], numbers[0] + len(numbers)
    return slice(first, end) if numbers == list(range(first, end)) else None


def neighbourhood(slots: Tensor) -> slice | None:
    """The slots between the least and the greatest of slots [D], if at least half of them are in use."""
    if not slots.is_cpu:
        return None
    numbers: list[int] = slots.tolist()
    first, end = min(numbers), max(numbers) + 1
    return slice(first, end) if end - first <= 2 * len(numbers) else None


def spread(t: Tensor, rows: Tensor, length: int) -> Tensor:
    """t [D, …] at `rows` [D] of a tensor [length, …] that is zero elsewhere."""
    return t.new_zeros(length, *t.shape[1:]).index_copy_(0, rows, t)
