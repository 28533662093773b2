"""Whether predictions come true as often as they say, and the level to plan at so that they do."""

from __future__ import annotations

import math
from dataclasses import dataclass

GAIN = 0.2
"""Log-odds by which a late request raises the level, per unit of probability. At a share of 0.95 the level
follows some hundred requests: fast enough for a day's drift, too slow to chase single stalls.
"""
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

    Both in (0, 1).
    """

    share: float
    at: float

    @classmethod
    def uncalibrated(cls, share: float) -> Level:
        """Takes the forecast at its word."""
        return cls(share, share)

    def probability(self, level: float) -> float:
        """What another level is kept with: certainties stay, and what is between them goes with the share."""
        if level <= self.at:
            return self.share * (level / self.at)
        return 1 - (1 - self.share) * (1 - level) / (1 - self.at)


class Calibration:
    """Moves one tenant's level with what came of its predictions.

    Adaptive conformal inference (Gibbs & Candès 2021): after each request the level moves by the difference
    of what happened and what should happen on average, so that in the long run a share of predictions holds
    that differs from the one wanted by no more than the level's range over the number of requests and the
    gain, whatever the errors of the forecast and however they drift. On log-odds, so that the level stays
    between 0 and 1; within bounds, so that it finds back.
    """

    def __init__(self) -> None:
        self._offset = BEGIN

    def level(self, share: float) -> Level:
        """The level to plan at for this share to be kept."""
        factor = math.exp(self._offset)  # on the odds
        return Level(share, share * factor / (1 + share * (factor - 1)))

    def note(self, share: float, held: bool) -> None:
        """A prediction that should hold with probability `share` did, or did not."""
        step = GAIN * (share - held)
        self._offset = min(max(self._offset + step, -FURTHEST), FURTHEST)
