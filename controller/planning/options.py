"""The ways in which a request may be served, what each is worth and what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from controller.planning.lengths import LengthEstimate
from controller.policy import QualityCurve

CLOSING_TOKENS_COST = 1
"""The closing text is fed in one step."""
NEUTRAL_LOWEST = 0.5
"""Of a tenant that shows nothing of its answers' quality: that of an answer without reasoning, beside 1 for
one whose reasoning came to its own end.
"""
NEUTRAL_POINTS = 8


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a request takes of a worker, in slot-seconds: seconds of one sequence's place in a full batch.

    prompt_slot_s: for its prompt, which occupies the whole worker. token_slot_s: for a token of its output.
    """

    prompt_slot_s: float = 0.0
    token_slot_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a request.

    budget: reasoning tokens, 0 for no_think. quality: expected. slot_s: expected use of the worker.
    """

    budget: int
    quality: float
    slot_s: float


@dataclass(frozen=True, slots=True)
class Increment:
    """A step up in quality: what each of its slot-seconds brings, in quality times weight, and how many it
    takes. An infinite density is one that no price takes away.
    """

    density: float
    slot_s: float


def options(
    budgets: Sequence[int], curve: QualityCurve, lengths: LengthEstimate, answer_tokens: int, tariff: Tariff
) -> list[Option]:
    """The options with these budgets, ascending.

    An option costs what it is expected to use, E[min(L, b)], with L the length at which reasoning would stop
    by itself (DESIGN §5).
    """
    at_once = tariff.prompt_slot_s + answer_tokens * tariff.token_slot_s
    use = lengths.reasoning.expected_use
    return [
        Option(
            budget,
            curve.at(budget),
            at_once + (use(budget) + CLOSING_TOKENS_COST) * tariff.token_slot_s if budget else at_once,
        )
        for budget in budgets
    ]


def best(choice: Sequence[Option], weight: float, price: float) -> Option:
    """The most worthwhile of at least one option at a price per slot-second; of equals the smaller budget."""
    chosen, highest = choice[0], -math.inf
    for option in choice:
        worth = weight * option.quality - price * option.slot_s
        if worth > highest:
            chosen, highest = option, worth
    return chosen


def between(low: Option, high: Option, budget: int) -> Option:
    """About what a budget between those of two options would be."""
    part = (budget - low.budget) / (high.budget - low.budget)
    quality = low.quality + part * (high.quality - low.quality)
    return Option(budget, quality, low.slot_s + part * (high.slot_s - low.slot_s))


def menu(choice: Sequence[Option], weight: float, *, may_reject: bool) -> tuple[Increment, ...]:
    """What more and more slot-seconds bring, the densest first: the upper concave hull of the options.

    At any price, the increments denser than it make up the option that `best` takes. may_reject: whether
    nothing at all is an option too; otherwise the cheapest one has an infinite density.
    """
    if may_reject:
        hull = [Option(0, 0.0, 0.0)]
        rest = choice
    else:
        cheapest = min(choice, key=lambda option: option.slot_s)
        hull = [cheapest]
        rest = [option for option in choice if option.slot_s > cheapest.slot_s]
    for option in rest:
        if option.quality <= hull[-1].quality:
            continue
        while len(hull) > 1 and _density(hull[-1], option) >= _density(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    steps = [Increment(weight * _density(a, b), b.slot_s - a.slot_s) for a, b in itertools.pairwise(hull)]
    if not may_reject:
        steps.insert(0, Increment(math.inf, hull[0].slot_s))
    return tuple(steps)


def neutral_curve(lengths: LengthEstimate, most: int) -> QualityCurve:
    """For a tenant whose answers' quality nobody knows: it rises with the probability that reasoning comes to
    its own end; evenly, where nothing is known of that either.
    """
    stops = lengths.reasoning
    reach = [stops.quantile((point + 1) / (NEUTRAL_POINTS + 1)) for point in range(NEUTRAL_POINTS)]
    budgets = sorted({int(length) for length in reach if 0 < length < most} | ({most} if most > 0 else set()))
    if len(budgets) <= 1:
        return QualityCurve.through([(0, NEUTRAL_LOWEST), *((budget, 1.0) for budget in budgets)])
    points = [
        (budget, NEUTRAL_LOWEST + (1 - NEUTRAL_LOWEST) * stops.stopped_by(budget)) for budget in budgets
    ]
    return QualityCurve.through([(0, NEUTRAL_LOWEST), *points])


def _density(low: Option, high: Option) -> float:
    extra_s = high.slot_s - low.slot_s
    return (high.quality - low.quality) / extra_s if extra_s > 0 else math.inf
