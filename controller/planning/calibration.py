"""Whether predictions come true as often as they say, and the level to plan at so that they do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

GAIN = 0.2
"""Log-odds by which a late request raises the level, per unit of probability. At a share of 0.95 the level
follows some hundred requests: fast enough for a day's drift, too slow to chase single stalls.
"""
PROMISE_GAIN = 0.2
"""The same for promised probabilities."""
FURTHEST = 3.0
"""Log-odds that the level may be off the share: for 0.95, a level of 0.49 to 0.997. However long all went
well, a dozen late requests thus bring it back.
"""
BEGIN = -0.5
"""Log-odds at which a tenant begins. A forecast that adds the quantiles of a request's parts is too careful,
and by more than this where the tests measure it: 0.95 begins at 0.92.
"""


@dataclass(frozen=True, slots=True)
class Level:
    """The level of the forecast's quantiles that is kept with probability `share`, as experience has it.

    Both in (0, 1). promise_offset: log-odds by which promised probabilities have turned out to be too low.
    """

    share: float
    at: float
    promise_offset: float = 0.0

    @classmethod
    def uncalibrated(cls, share: float) -> Level:
        """Takes the forecast at its word."""
        return cls(share, share)

    def probability(self, level: float) -> float:
        """What another level is kept with: certainties stay, and what is between them goes with the share."""
        if level <= self.at:
            return self.share * (level / self.at)
        return 1 - (1 - self.share) * (1 - level) / (1 - self.at)

    def promise(self, probability: float) -> float:
        """A probability as experience has it."""
        return _shifted(probability, self.promise_offset)


class Offset(Protocol):
    """Log-odds, `BEGIN` in the beginning, moved by steps and kept within ±`FURTHEST`."""

    def read(self) -> float:
        """Where it is."""
        ...

    def step(self, by: float) -> None:
        """Moves it."""
        ...


class OwnOffset:
    """One that nobody else moves."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at = BEGIN

    def read(self) -> float:
        """Where it is."""
        return self._at

    def step(self, by: float) -> None:
        """Moves it."""
        self._at = min(max(self._at + by, -FURTHEST), FURTHEST)


class Calibration:
    """Moves one tenant's level with what came of its predictions, and its promises with what came of them.

    Adaptive conformal inference (Gibbs & Candès 2021): after each request the level moves by the difference
    of what happened and what should happen on average, so that in the long run a share of predictions holds
    that differs from the one wanted by no more than the level's range over the number of requests and the
    gain, whatever the errors of the forecast and however they drift. On log-odds, so that the level stays
    between 0 and 1; within bounds, so that it finds back.
    """

    def __init__(self, offset: Offset | None = None) -> None:
        """offset: of the level; None keeps one of its own."""
        self._offset = offset or OwnOffset()
        self._promise_offset = 0.0

    def level(self, share: float) -> Level:
        """The level to plan at for this share to be kept."""
        return Level(share, _shifted(share, self._offset.read()), self._promise_offset)

    def note(self, share: float, held: bool) -> None:
        """A prediction that should hold with probability `share` did, or did not."""
        self._offset.step(GAIN * (share - held))

    def note_promise(self, promised: float, kept: bool) -> None:
        """A deadline that was promised with this probability was kept, or was not.

        A plan keeps more than the forecast at its level says, since reasoning is ended in time for the
        deadline whatever happens: promised probabilities are calibrated by themselves, by online gradient
        descent on their log-odds (as Platt 1999, without a slope), towards what share of them is kept.
        """
        moved = self._promise_offset + PROMISE_GAIN * (kept - promised)
        self._promise_offset = min(max(moved, -FURTHEST), FURTHEST)


def _shifted(probability: float, log_odds: float) -> float:
    if not 0 < probability < 1:
        return probability
    factor = math.exp(log_odds)
    return probability * factor / (1 + probability * (factor - 1))
