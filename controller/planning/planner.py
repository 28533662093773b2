"""The decision: mode, budget, reserves and times of one request.

Thinking is worth its time while it raises the expected quality of the answer by more than its price. Its
limits are the policy's range, the caller's wishes, the worker's sequence length and, above all, the time: the
largest budget whose latency, at the quantile that the tenant was promised, ends before the deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from controller.planning.calibration import Level
from controller.planning.decision import Ask, Decision, Mode, Refusal
from controller.planning.explain import arithmetic
from controller.planning.forecast import Forecast, Pace, Times
from controller.planning.in_flight import Course
from controller.planning.lengths import LengthEstimate
from controller.planning.speed import SpeedEstimate
from controller.policy import ModePolicy, Otherwise, TenantPolicy

CLOSING_TOKENS = 16
"""Kept free in a sequence for the closing text, which is 11 characters long by default."""


def plan(
    ask: Ask,
    tenant: TenantPolicy,
    lengths: LengthEstimate,
    speed: SpeedEstimate,
    max_sequence_tokens: int,
    price: float = 0.0,
    level: Level | None = None,
) -> Decision | Refusal:
    """Decides one request.

    max_sequence_tokens: prompt and output that the worker holds for one request. price: what a second of
    decoding is worth to the other promises of the pool, in quality times weight; 0 when nobody waits. level:
    at which the forecast keeps the tenant's share; by default, as it says.
    """
    share = tenant.objectives.share
    level = level or Level.uncalibrated(share)
    answer_tokens = tenant.budget.answer_tokens or lengths.answer_reserve
    if ask.max_answer_tokens is not None:
        answer_tokens = min(answer_tokens, ask.max_answer_tokens)
    times = Times.of(tenant.objectives, ask.deadline_s)
    bounds = _Bounds.of(ask, tenant, answer_tokens, max_sequence_tokens)
    forecast = Forecast(speed, lengths, ask.prompt_tokens, answer_tokens)
    pace = forecast.at(level.at)

    budget = _best_budget(bounds, times, pace, tenant, lengths, price)
    keeps_promise = budget is not None
    if budget is None and tenant.otherwise is Otherwise.REFUSE:
        at_best = forecast.at_best(level.at)
        if _best_budget(bounds, times, at_best, tenant, lengths, price) is None:
            return _refusal(bounds, times, pace, tenant)
    if budget is None:  # the floor gives way before the deadline does
        budget = _best_budget(replace(bounds, floor=0), times, pace, tenant, lengths, price)
    if budget is None:
        budget = bounds.fewest

    shape = _Shape.of(budget, tenant, times, pace)
    predicted_s = shape.end_s(pace)
    numbers = arithmetic(times, share, pace, shape.reasoning_tokens(pace), predicted_s)
    verdict = "fits" if keeps_promise else "does not keep every promise, best effort"
    return Decision(
        mode=Mode.THINK if budget > 0 else Mode.NO_THINK,
        budget_tokens=budget,
        grace_tokens=shape.grace,
        answer_tokens=answer_tokens,
        reason_until_s=shape.reason_until_s,
        deadline_s=times.deadline(),
        share=share,
        predicted_s=predicted_s,
        promised_probability=_probability(times.deadline_s, level, predicted_s, forecast, shape),
        keeps_promise=keeps_promise,
        why=f"{numbers} {verdict}; {_choice(budget, bounds, times.room_tokens(pace), tenant)}",
        course=None
        if shape.reason_until_s is None
        else Course(times, pace, shape.budget + shape.grace, shape.grace),
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
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
    def of(cls, ask: Ask, tenant: TenantPolicy, answer_tokens: int, max_sequence_tokens: int) -> _Bounds:
        budget, floor = tenant.budget, tenant.quality.floor_budget
        free = max_sequence_tokens - ask.most_prompt_tokens - answer_tokens - CLOSING_TOKENS
        most = min(budget.max_tokens, budget.grace.largest_budget(free))
        wished = ask.max_reasoning_tokens
        if ask.mode is Mode.NO_THINK:
            wished = 0
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """A plan's reasoning: budget and grace in tokens, and when it must end."""

    budget: int
    grace: int
    reason_until_s: float | None

    @classmethod
    def of(cls, budget: int, tenant: TenantPolicy, times: Times, pace: Pace) -> _Shape:
        """What follows from a budget at a pace."""
        if budget == 0:
            return cls(0, 0, None)
        grace = tenant.budget.grace.tokens(budget)
        return cls(budget, grace, times.reason_until_s(pace, grace))

    def reasoning_tokens(self, pace: Pace) -> float:
        """What it uses at a pace, 0 for no_think."""
        if self.budget == 0:
            return 0.0
        return pace.reasoning_used(self.budget + self.grace, self.reason_until_s, self.grace)

    def end_s(self, pace: Pace) -> float:
        """Receipt to end at a pace."""
        if self.budget == 0:
            return pace.no_think_s()
        return pace.think_s(self.reasoning_tokens(pace))


def _best_budget(
    bounds: _Bounds, times: Times, pace: Pace, tenant: TenantPolicy, lengths: LengthEstimate, price: float
) -> int | None:
    """The most worthwhile budget that keeps every promise at a pace, 0 for no_think; None if none does."""
    curve, grace = tenant.quality.curve, tenant.budget.grace
    room = times.room_tokens(pace)
    least = max(1, bounds.least, bounds.floor)
    most = bounds.most if math.isinf(room) else min(bounds.most, grace.largest_budget(int(room)))
    thinks = bounds.may_think and least <= most
    skips = bounds.may_skip and bounds.floor == 0 and times.keeps_no_think(pace)
    if not thinks:
        return 0 if skips else None

    def worth(quality: float, budget: int) -> float:
        cost = price * lengths.reasoning.expected_use(budget) * pace.step_s if price > 0 else 0.0
        return tenant.weight * quality - cost

    if curve is None:
        return most  # nothing was measured: more is taken to be better
    best, value = curve.best_budget(least, most, worth)
    if skips and not bounds.prefer_thinking and worth(curve.qualities[0], 0) >= value:
        return 0
    return best


def _refusal(bounds: _Bounds, times: Times, pace: Pace, tenant: TenantPolicy) -> Refusal:
    """With the fastest plan that would keep every other promise."""
    share = tenant.objectives.share
    fewest = max(bounds.fewest, min(bounds.floor, bounds.most))
    end_s = pace.think_s(fewest) if fewest > 0 else pace.no_think_s()
    floor = f", {bounds.floor} of them for the quality floor" if bounds.floor > 0 else ""
    numbers = arithmetic(times, share, pace, fewest, end_s)
    why = f"{numbers}{floor}; refused, since not every promise can be kept"
    return Refusal(times.deadline(), share, end_s, why)


def _choice(budget: int, bounds: _Bounds, room: float, tenant: TenantPolicy) -> str:
    """What made the budget what it is."""
    if budget == 0:
        if not bounds.may_think:
            return "no_think as asked" if tenant.mode is ModePolicy.AUTO else "no_think by policy"
        if room < max(1, bounds.least):
            return "no_think, since reasoning does not fit"
        if not math.isinf(room) and tenant.budget.grace.largest_budget(int(room)) < bounds.floor:
            return f"no_think, since the {bounds.floor} tokens that the quality floor asks for do not fit"
        return "no_think, since reasoning is not worth its time"
    of = f"budget {budget} of at most {bounds.most}"
    if budget == bounds.most:
        return of
    if room < budget:
        return f"{of}, the least allowed"
    if tenant.quality.curve is not None and (
        math.isinf(room) or budget < tenant.budget.grace.largest_budget(int(room))
    ):
        return f"{of}, since more does not pay"
    return f"{of}, all that fits"


def _probability(
    deadline_s: float, level: Level, predicted_s: float, forecast: Forecast, shape: _Shape
) -> float:
    """That of the highest level at which the plan still ends by the deadline, found by bisection and rounded
    down.

    Beyond the share it is no higher than the requests seen can vouch for.
    """
    if math.isinf(deadline_s):
        return 1.0
    fits = predicted_s <= deadline_s
    low, high = (level.at, max(level.at, forecast.vouched_level)) if fits else (0.0, level.at)
    if shape.end_s(forecast.at(high)) <= deadline_s:
        low = high
    else:
        for _ in range(6):
            middle = (low + high) / 2
            if shape.end_s(forecast.at(middle)) <= deadline_s:
                low = middle
            else:
                high = middle
    promised = level.probability(low)
    return min(promised, max(level.share, forecast.vouched_level)) if fits else promised
