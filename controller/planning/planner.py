"""The decision: mode, budget, reserves and times of one request.

Thinking is worth its time while it raises the expected quality of the answer by more than its price. Its
limits are the policy's range, the caller's wishes, the worker's sequence length and, above all, the time: the
largest budget whose latency, at the quantile that the tenant was promised, ends before the deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from controller.planning.bounds import Bounds
from controller.planning.calibration import Level
from controller.planning.decision import Ask, Decision, Mode, Refusal, RefusedFor
from controller.planning.explain import arithmetic
from controller.planning.forecast import Forecast, Pace, Times
from controller.planning.in_flight import Course
from controller.planning.lengths import LengthEstimate
from controller.planning.options import Increment, Option, best, between, menu, neutral_curve, options
from controller.planning.speed import SpeedEstimate
from controller.policy import Brownout, ModePolicy, Otherwise, TenantPolicy


def plan(
    ask: Ask,
    tenant: TenantPolicy,
    lengths: LengthEstimate,
    speed: SpeedEstimate,
    max_sequence_tokens: int,
    level: Level | None = None,
) -> Decision | Refusal:
    """Decides one request on an idle pool, where nothing but its own promise limits it."""
    return Prospect.of(ask, tenant, lengths, speed, max_sequence_tokens, level).decide(price=0.0)


@dataclass(frozen=True, slots=True)
class Prospect:
    """How a request may be served, before it is known what that costs.

    choice: what keeps every promise, by budget, or comes nearest where that may be tried; empty when it is to
    be refused. measured: whether the options' quality was. keeps_promise: whether they do.
    """

    tenant: TenantPolicy
    answer_tokens: int
    level: Level
    times: Times
    bounds: Bounds
    forecast: Forecast
    pace: Pace
    choice: tuple[Option, ...]
    measured: bool
    keeps_promise: bool

    @classmethod
    def of(
        cls,
        ask: Ask,
        tenant: TenantPolicy,
        lengths: LengthEstimate,
        speed: SpeedEstimate,
        max_sequence_tokens: int,
        level: Level | None = None,
    ) -> Prospect:
        """Looks at a request as things stand.

        max_sequence_tokens: prompt and output that the worker holds for one request. level: at which the
        forecast keeps the tenant's share; by default, as it says.
        """
        level = level or Level.uncalibrated(tenant.objectives.share)
        answer_tokens = tenant.budget.answer_tokens or lengths.answer_reserve
        for most in (ask.max_answer_tokens, ask.max_output_tokens):
            answer_tokens = answer_tokens if most is None else min(answer_tokens, most)
        times = Times.of(tenant.objectives, ask.deadline_s)
        bounds = Bounds.of(ask, tenant, answer_tokens, max_sequence_tokens)
        forecast = Forecast(speed, lengths, ask.prompt_tokens, answer_tokens)
        pace = forecast.at(level.at)
        known = tenant.quality.curve
        curve = known or neutral_curve(lengths, bounds.most)
        budgets = bounds.budgets(times, pace, tenant, curve)
        keeps_promise = bool(budgets)
        if not keeps_promise and (
            tenant.otherwise is Otherwise.BEST_EFFORT
            or bounds.budgets(times, forecast.at_best(level.at), tenant, curve)
        ):
            # The floor gives way before the deadline does.
            budgets = replace(bounds, floor=0).budgets(times, pace, tenant, curve) or [bounds.fewest]
        usual = lengths.answer.median
        answer = answer_tokens if usual is None else min(answer_tokens, math.ceil(usual))
        return cls(
            tenant,
            answer_tokens,
            level,
            times,
            bounds,
            forecast,
            pace,
            tuple(options(budgets, curve, lengths, answer, speed.tariff(ask.prompt_tokens))),
            known is not None,
            keeps_promise,
        )

    def decide(self, price: float) -> Decision | Refusal:
        """The most worthwhile way at a price: quality times weight for a slot-second."""
        if not self.choice:
            return self.refusal(RefusedFor.PROMISE)
        free = self._free()
        weight = self.tenant.weight
        chosen = free
        if price > 0:
            if not self.worth_it(price):
                return self.refusal(RefusedFor.PRICE)
            chosen = best(self._squeezable(free), weight, price)
        return self._decision(chosen, free, price)

    def worth_it(self, price: float) -> bool:
        """Whether it is worth its place at a price, or must be given one at any."""
        if price <= 0 or not self.tenant.brownout.may_wait:
            return True
        weight = self.tenant.weight
        return any(weight * option.quality >= price * option.slot_s for option in self.choice)

    def patience_s(self) -> float:
        """How long it may wait for a place if all goes well after that; infinite when served however late."""
        if self.tenant.otherwise is Otherwise.BEST_EFFORT:
            return math.inf
        pace, fewest = self.forecast.at_best(self.level.at), self.bounds.fewest
        end_s = pace.think_s(fewest) if fewest > 0 else pace.no_think_s()
        return max(0.0, self.times.deadline_s - (end_s - pace.wait_s))

    def slot_s(self, budget: int) -> float:
        """What the option with a budget is expected to take of the worker, in slot-seconds."""
        return next(option.slot_s for option in self.choice if option.budget == budget)

    def menu(self) -> tuple[Increment, ...]:
        """How much of the pool this takes at any price; nothing when it is refused at all of them."""
        if not self.choice:
            return ()
        choice = self._squeezable(self._free())
        return menu(choice, self.tenant.weight, may_reject=self.tenant.brownout.may_wait)

    def rebudget(self, price: float, used_tokens: int) -> int:
        """The best budget for reasoning that has used so many tokens and goes on, as the price is now.

        What more thinking brings, and what it is expected to cost, both come to those alone that have not
        stopped by then: their ratio, and so the choice, is the same as before it began.
        """
        if self.tenant.brownout is Brownout.NONE:
            return max(self._free().budget, used_tokens + 1)
        more = [option for option in self.choice if option.budget > used_tokens]
        if not more or more[0] is self.choice[0]:
            return used_tokens + 1
        here = between(self.choice[-len(more) - 1], more[0], used_tokens + 1)
        return best([here, *more], self.tenant.weight, price).budget

    def _free(self) -> Option:
        """What is chosen at price 0; where no quality was measured, more is taken to be better."""
        if not self.measured:
            return self.choice[-1]
        return best(self.choice, self.tenant.weight, 0.0)

    def _squeezable(self, free: Option) -> list[Option]:
        """What a price may choose from: nothing beyond what would be chosen without, nothing below what the
        policy says.
        """
        if self.tenant.brownout is Brownout.NONE:
            return [free]
        less = [option for option in self.choice if option.budget <= free.budget]
        if self.tenant.brownout is Brownout.LESS and free.budget > 0:
            return [option for option in less if option.budget > 0]
        return less

    def _decision(self, chosen: Option, free: Option, price: float) -> Decision:
        budget, times, pace, share = chosen.budget, self.times, self.pace, self.level.share
        shape = _Shape.of(budget, self.tenant, times, pace)
        predicted_s = shape.end_s(pace)
        numbers = arithmetic(times, share, pace, shape.reasoning_tokens(pace), predicted_s)
        verdict = "fits" if self.keeps_promise else "does not keep every promise, best effort"
        brownout = Brownout.NONE
        if budget < free.budget:
            brownout = Brownout.LESS if budget > 0 else Brownout.NO_THINK
        return Decision(
            mode=Mode.THINK if budget > 0 else Mode.NO_THINK,
            budget_tokens=budget,
            grace_tokens=shape.grace,
            answer_tokens=self.answer_tokens,
            reason_until_s=shape.reason_until_s,
            deadline_s=times.deadline(),
            share=share,
            predicted_s=predicted_s,
            promised_probability=_probability(
                times.deadline_s, self.level, predicted_s, self.forecast, shape
            ),
            keeps_promise=self.keeps_promise,
            quality=chosen.quality,
            price=price,
            brownout=brownout,
            why=f"{numbers} {verdict}; {self._why(budget, brownout)}",
            course=None
            if shape.reason_until_s is None
            else Course(times, pace, shape.budget + shape.grace, shape.grace),
            reserve_tokens=max(budget, free.budget) if budget > 0 else 0,
        )

    def _why(self, budget: int, brownout: Brownout) -> str:
        """What made the budget what it is."""
        bounds, tenant = self.bounds, self.tenant
        room = self.times.room_tokens(self.pace)
        if budget == 0:
            if not bounds.may_think:
                return "no_think as asked" if tenant.mode is ModePolicy.AUTO else "no_think by policy"
            if room < max(1, bounds.least):
                return "no_think, since reasoning does not fit"
            if not math.isinf(room) and tenant.budget.grace.largest_budget(int(room)) < bounds.floor:
                return f"no_think, since the {bounds.floor} tokens that the quality floor asks for do not fit"
            what = "time" if brownout is Brownout.NONE else "price"
            return f"no_think, since reasoning is not worth its {what}"
        of = f"budget {budget} of at most {bounds.most}"
        if brownout is not Brownout.NONE:
            return f"{of}, since more is not worth its price"
        if budget == bounds.most:
            return of
        if room < budget:
            return f"{of}, the least allowed"
        if self.measured and (math.isinf(room) or budget < tenant.budget.grace.largest_budget(int(room))):
            return f"{of}, since more does not pay"
        return f"{of}, all that fits"

    def refusal(self, reason: RefusedFor) -> Refusal:
        """The refusal, with the fastest plan that would keep every other promise."""
        bounds, times, pace = self.bounds, self.times, self.pace
        fewest = max(bounds.fewest, min(bounds.floor, bounds.most))
        end_s = pace.think_s(fewest) if fewest > 0 else pace.no_think_s()
        floor = f", {bounds.floor} of them for the quality floor" if bounds.floor > 0 else ""
        numbers = arithmetic(times, self.level.share, pace, fewest, end_s)
        why = f"{numbers}{floor}; refused, since {_BECAUSE[reason]}"
        return Refusal(reason, times.deadline(), self.level.share, end_s, why)


_BECAUSE = {
    RefusedFor.PROMISE: "not every promise can be kept",
    RefusedFor.PRICE: "others need the place more",
    RefusedFor.CROWD: "as many of the tenant's requests wait as may",
}


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
    return level.promise(min(promised, max(level.share, forecast.vouched_level)) if fits else promised)
