"""Limits on rates, by the generic cell rate algorithm.

GCRA (ITU-T I.371) keeps one number: the theoretical arrival time (TAT), at which everything that was let in
so far would have come at exactly the limit's pace. What comes moves it on by its cost, units × time per unit.
It is let in as long as the TAT runs ahead of the clock by no more than a window, burst × time per unit. This
is a token bucket that never needs to be filled. All times are whole microseconds, so that every store
computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_DEBT_US = 3600 * 1_000_000
"""How far past its window use may go and still be remembered: who used too much, or was limited more strictly
before, is let in again after an hour at most.
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit on a rate. unit_us: time per unit, above 0. window_us: how far use may run ahead."""

    unit_us: float
    window_us: int

    @classmethod
    def of(cls, per_s: float, burst: float) -> Bucket:
        """Lets in `per_s` units a second in the long run and `burst` at once; both above 0."""
        unit_us = 1e6 / per_s
        return cls(unit_us, max(1, round(burst * unit_us)))

    def cost_us(self, units: float) -> int:
        """What units cost, rounded up; negative for units that are given back."""
        return math.ceil(units * self.unit_us - 1e-6)

    def share(self, parts: int) -> Bucket:
        """What each of `parts` may let in on its own: in the same window a part of the burst."""
        return Bucket(self.unit_us * parts, self.window_us)


def wait_us(bucket: Bucket, tat_us: int, cost_us: int, now_us: int) -> int:
    """How long until this cost may be let in; 0 for now. One that is larger than the window needs all."""
    ahead_us = _reached_us(bucket, tat_us, now_us) - now_us
    return max(0, ahead_us + min(cost_us, bucket.window_us) - bucket.window_us)


def charged(bucket: Bucket, tat_us: int, cost_us: int, now_us: int) -> int:
    """The TAT once this cost was let in."""
    return _reached_us(bucket, tat_us, now_us) + cost_us


def corrected(tat_us: int, cost_us: int, now_us: int) -> int:
    """The TAT after a cost that nobody was asked about, or one that is given back, where it is negative."""
    return tat_us + cost_us if cost_us < 0 else max(tat_us, now_us) + cost_us


def _reached_us(bucket: Bucket, tat_us: int, now_us: int) -> int:
    return min(max(tat_us, now_us), now_us + bucket.window_us + MAX_DEBT_US)
