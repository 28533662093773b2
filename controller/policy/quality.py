"""Answer quality as a function of the thinking budget."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """Expected quality of an answer by reasoning budget, from measured points.

    budgets: tokens, ascending, beginning with 0, which is no_think. qualities: at those budgets, in [0, 1].
    Linear between the points, level after the last.
    """

    budgets: tuple[int, ...]
    qualities: tuple[float, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> QualityCurve:
        """The curve through points of (budget in tokens, quality). Raises ValueError when they make none."""
        if not points or points[0][0] != 0:
            raise ValueError("a curve begins with budget 0, which is no_think")
        for (budget, _), (following, _) in itertools.pairwise(points):
            if following <= budget:
                raise ValueError(f"budgets must rise, but {following} follows {budget}")
        return cls(tuple(b for b, _ in points), tuple(q for _, q in points))

    def at(self, budget: int) -> float:
        """Quality at a budget."""
        right = bisect_right(self.budgets, budget)
        if right == len(self.budgets):
            return self.qualities[-1]
        return self._between(right - 1, budget)

    def least_budget(self, quality: float) -> int | None:
        """The least budget at which the curve reaches a quality; None when it never does."""
        for index, reached in enumerate(self.qualities):
            if reached < quality:
                continue
            if index == 0:
                return 0
            low, high = self.budgets[index - 1], self.budgets[index]
            inside = range(low, high + 1)
            return inside[bisect_left(inside, quality, key=self.at)]
        return None

    def points_within(self, least: int, most: int) -> list[int]:
        """The budgets in [least, most] that are points of the curve, and both ends; ascending."""
        inside = self.budgets[bisect_right(self.budgets, least) : bisect_left(self.budgets, most)]
        return [least, *inside, most] if most > least else [least]

    def _between(self, left: int, budget: int) -> float:
        x0, x1 = self.budgets[left], self.budgets[left + 1]
        y0, y1 = self.qualities[left], self.qualities[left + 1]
        return y0 + (y1 - y0) * (budget - x0) / (x1 - x0)
