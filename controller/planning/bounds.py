"""What a request may use, whatever it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from controller.planning.decision import Ask, Mode
from controller.planning.forecast import Pace, Times
from controller.policy import ModePolicy, QualityCurve, TenantPolicy

CLOSING_TOKENS = 16
"""Kept free in a sequence for the closing text, which is 11 characters long by default."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may use however much time there is, in reasoning tokens.

    may_think, may_skip: whether it may reason, and whether it may answer at once. prefer_thinking: answering
    at once is only for when thinking does not fit. floor: the least that the quality floor asks for; above 0,
    skipping does not reach it.
    """

    may_think: bool
    may_skip: bool
    prefer_thinking: bool
    least: int
    most: int
    floor: int

    @property
    def fewest(self) -> int:
        """The fastest that is allowed when no promise can be kept; the floor is one of them."""
        return 0 if self.may_skip else min(max(1, self.least), self.most)

    @classmethod
    def of(cls, ask: Ask, tenant: TenantPolicy, answer_tokens: int, max_sequence_tokens: int) -> Bounds:
        """Those of a request of a tenant on a worker."""
        budget, floor = tenant.budget, tenant.quality.floor_budget
        free = max_sequence_tokens - ask.most_prompt_tokens - answer_tokens - CLOSING_TOKENS
        most = min(budget.max_tokens, budget.grace.largest_budget(free))
        wished = ask.max_reasoning_tokens
        if ask.mode is Mode.NO_THINK:
            wished = 0
        if ask.max_output_tokens is not None:
            left = budget.grace.largest_budget(ask.max_output_tokens - answer_tokens - CLOSING_TOKENS)
            wished = left if wished is None else min(wished, left)
        if wished is not None:
            # Callers may ask for less than their tenant is promised.
            most, floor = min(most, wished), min(floor, wished)
        skips = tenant.mode is ModePolicy.NO_THINK or wished == 0
        return cls(
            may_think=not skips,
            may_skip=skips or tenant.mode is ModePolicy.AUTO,
            prefer_thinking=ask.mode is Mode.THINK,
            least=budget.min_tokens if wished is None else min(budget.min_tokens, wished),
            most=most,
            floor=floor,
        )

    def budgets(self, times: Times, pace: Pace, tenant: TenantPolicy, curve: QualityCurve) -> list[int]:
        """The budgets worth a look among those that keep every promise at a pace, ascending; 0 is no_think.

        The most worthwhile of all is among them when the cost is concave in the budget, as E[min(L, b)] is:
        between two points of the curve the worth is then convex, so its maximum lies at a point or at an end.
        A concave envelope would not do here: it credits a budget that the deadline cuts off inside a hollow
        of the curve with what only a larger one achieves.
        """
        room = times.room_tokens(pace)
        least = max(1, self.least, self.floor)
        most = (
            self.most if math.isinf(room) else min(self.most, tenant.budget.grace.largest_budget(int(room)))
        )
        thinks = self.may_think and least <= most
        skips = self.may_skip and self.floor == 0 and times.keeps_no_think(pace)
        found = [0] if skips and not (thinks and self.prefer_thinking) else []
        if thinks:
            found += curve.points_within(least, most)
        return found
