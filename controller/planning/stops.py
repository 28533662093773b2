"""Where reasoning stops by itself."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopCurve:
    """Probability that reasoning has stopped by itself within a number of tokens.

    lengths: where it stopped, ascending. stopped: that probability at those lengths, rising. mean_up_to: the
    area under the survival curve up to those lengths, in tokens.
    """

    lengths: tuple[int, ...] = ()
    stopped: tuple[float, ...] = ()
    mean_up_to: tuple[float, ...] = ()

    @classmethod
    def estimate(cls, observations: Iterable[tuple[int, bool]]) -> StopCurve:
        """From (tokens, stopped by itself) pairs; a pair that did not stop was cut there and would have gone
        on.

        The product-limit estimate (Kaplan & Meier 1958), which uses cut reasoning for what it shows: that it
        was at least so long. One more reasoning, that never stops, is added to those observed, for the same
        reason as the n + 1 in `Quantiles`: the curve never promises a stop that the observations cannot vouch
        for.
        """
        # At the same length a stop comes before a cut: what was cut there had not stopped there.
        ordered = sorted(observations, key=lambda o: (o[0], not o[1]))
        at_risk, survival = len(ordered) + 1, 1.0
        lengths: list[int] = []
        stopped: list[float] = []
        mean_up_to: list[float] = []
        area, last = 0.0, 0
        for tokens, by_itself in ordered:
            if by_itself:
                area += survival * (tokens - last)
                last = tokens
                survival *= 1 - 1 / at_risk
                if lengths and lengths[-1] == tokens:
                    stopped[-1] = 1 - survival
                else:
                    lengths.append(tokens)
                    stopped.append(1 - survival)
                    mean_up_to.append(area)
            at_risk -= 1
        return cls(tuple(lengths), tuple(stopped), tuple(mean_up_to))

    def stopped_by(self, tokens: int) -> float:
        """Probability that reasoning stops by itself with at most so many tokens."""
        index = bisect_right(self.lengths, tokens) - 1
        return self.stopped[index] if index >= 0 else 0.0

    def quantile(self, level: float, reached: int = 0) -> float:
        """Tokens within which reasoning stops with this probability; infinite beyond the curve's reach.

        reached: tokens that it has come to without a stop, for what is left of the curve then.
        """
        if reached > 0:
            before = self.stopped_by(reached - 1)
            level = before + (1 - before) * level
        index = bisect_left(self.stopped, level - 1e-9)
        return self.lengths[index] if index < len(self.lengths) else math.inf

    def expected_use(self, budget: int, reached: int = 0) -> float:
        """E[min(L, budget)]: tokens that a budget is expected to use.

        reached: tokens that it has come to without a stop, at most `budget`.
        """
        if reached > 0:
            left = 1 - self.stopped_by(reached - 1)
            return reached + (self.expected_use(budget) - self.expected_use(reached)) / left
        index = bisect_right(self.lengths, budget) - 1
        if index < 0:
            return float(budget)
        return self.mean_up_to[index] + (1 - self.stopped[index]) * (budget - self.lengths[index])
