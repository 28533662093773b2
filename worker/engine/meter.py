"""How fast the engine has been lately."""

from __future__ import annotations

from collections import deque
from statistics import median

_STEPS = 32
_WINDOW_S = 1.0


class Meter:
    """Remembers the last steps. Times are on the engine's clock, in seconds."""

    def __init__(self) -> None:
        self._decode_s: deque[float] = deque(maxlen=_STEPS)
        self._sampled: deque[tuple[float, int]] = deque()
        self._in_window = 0

    def record(self, began_s: float, ended_s: float, sampled: int, decoding: bool) -> None:
        """Notes a step that sampled so many tokens; decoding: it did nothing else."""
        if decoding:
            self._decode_s.append(ended_s - began_s)
        self._sampled.append((ended_s, sampled))
        self._in_window += sampled
        self._forget(ended_s)

    @property
    def step_s(self) -> float | None:
        """Median time of the last decode steps; None before the first."""
        return median(self._decode_s) if self._decode_s else None

    def tokens_per_s(self, now_s: float) -> float:
        """Tokens sampled in the last second."""
        self._forget(now_s)
        return self._in_window / _WINDOW_S

    def _forget(self, now_s: float) -> None:
        while self._sampled and self._sampled[0][0] < now_s - _WINDOW_S:
            self._in_window -= self._sampled.popleft()[1]
