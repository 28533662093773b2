"""For how long nothing was heard of a worker."""

from __future__ import annotations

import math


class Silence:
    """Counts only time in which this process ran: one that was itself stopped, or starved, for a while has
    heard nobody, and must not take all for dead when it goes on.
    """

    def __init__(self, tick_s: float) -> None:
        """tick_s: between two looks. A pause of more than two counts as two."""
        self._tick_s = tick_s
        self._heard_s = -math.inf
        self._looked_s = math.inf
        self._silent_s = 0.0

    def look(self, heard_s: float, now_s: float) -> float:
        """Seconds of silence. heard_s: when the last word came, by the clock of `now_s`."""
        if heard_s != self._heard_s:
            self._heard_s, self._silent_s = heard_s, 0.0
        else:
            self._silent_s += min(max(0.0, now_s - self._looked_s), 2 * self._tick_s)
        self._looked_s = now_s
        return self._silent_s
