"""Where requests with the same system turn go: consistent hashing (Karger et al. 1997)."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable

from controller.fleet.worker import Worker

POINTS = 32
"""Of each worker: shares differ by about a sixth."""
STEPS = 64
"""Points that are looked at for a worker that can be chosen."""


class Ring:
    """Workers on a circle of 64-bit numbers. The same on every controller that knows the same addresses; one
    that comes or goes moves only its own part.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, str]] = []
        self._workers: dict[str, Worker] = {}

    def add(self, worker: Worker) -> None:
        """Gives a worker its part."""
        self._workers[worker.address] = worker
        for point in _points(worker.address):
            insort(self._points, (point, worker.address))

    def remove(self, worker: Worker) -> None:
        """Gives its part to the others."""
        del self._workers[worker.address]
        self._points = [point for point in self._points if point[1] != worker.address]

    def owner(self, digest: int, able: Callable[[Worker], bool]) -> Worker | None:
        """The first worker after a number that is able; None when it is not near."""
        begin = bisect_left(self._points, (digest, ""))
        for step in range(min(STEPS, len(self._points))):
            worker = self._workers[self._points[(begin + step) % len(self._points)][1]]
            if able(worker):
                return worker
        return None


def _points(address: str) -> list[int]:
    return [
        int.from_bytes(hashlib.blake2b(f"{address}#{number}".encode(), digest_size=8).digest(), "big")
        for number in range(POINTS)
    ]
