"""Answer quality by thinking budget, learnt from the outcomes that callers report.

An answer with a budget of b tokens follows reasoning that stopped by itself, with probability P(L <= b), or
that was cut at b:

    q(b) = P(L <= b) * q_stopped + P(L > b) * q_cut(b)

P comes from the lengths of requests of the same class (`controller.planning.lengths`), so a few reports tell
much: each of the three qualities (stopped, cut, without reasoning) is one number and what a report adds to it
depends on little more. That little is how much reasoning was still to come: more of it left out makes a worse
answer, and a harder question has more of it to begin with.

Few reports move little. A quality near some amount of reasoning left is shrunk towards that of all amounts,
as if so many reports more had shown it (Efron & Morris 1975), and q(b) towards the policy's curve, which
without reports holds exactly: the mean of a Beta posterior whose prior is that curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from controller.planning.outcomes import Ended, Trial, left_tokens
from controller.planning.stops import StopCurve
from controller.policy import Quality, QualityCurve, TenantPolicy

PRIOR_REPORTS = 20.0
"""What the policy's curve counts for at each budget."""
BORROWED_REPORTS = 8.0
"""What all reports of a kind count for beside those with about as much reasoning left."""
LEAST_REPORTS = 20
"""Where the policy has no curve, fewer reports make none."""
NEUTRAL_WITHOUT = 0.5
"""Where the policy has no curve: quality without reasoning, or with none of it finished, beside that of
reasoning that stopped by itself, until reports tell.
"""
UNSEEN_REPORTS = 0.25
"""What the policy's curve counts for as one of the three qualities, so that one never reported is as the
policy says while the others are as reported.
"""
MEMORY_REPORTS = 1000.0
HALF_LIFE_S = 86_400.0
"""Old reports fade by number and by age: models are exchanged, and what is asked changes."""
FADE_EVERY_S = 600.0
BINS = 36
"""Half-octaves of reasoning left, to 2^17 tokens."""
MOST_CACHED = 64
KNOT_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)


class QualityModel:
    """Learns one tenant's curves, one for each rule of its policy."""

    def __init__(self) -> None:
        self._rules: dict[str, _Evidence] = {}

    def learn(self, trial: Trial, score: float, now_s: float) -> None:
        """An answer was reported to be this good, in [0, 1]; `now_s` must not go back."""
        evidence = self._rules.get(trial.rule)
        if evidence is None:
            evidence = self._rules[trial.rule] = _Evidence(now_s)
        evidence.learn(trial, score, now_s)

    def apply(self, policy: TenantPolicy, stops: StopCurve, now_s: float) -> TenantPolicy:
        """What to plan with: the policy as it stands, or with its curve as learnt, and the floor where this
        curve reaches it, or comes nearest.

        stops: where the reasoning of requests of this class stops.
        """
        evidence = self._rules.get(policy.rule)
        if not policy.quality.learn or evidence is None:
            return policy
        return evidence.apply(policy, stops, now_s)


@dataclass(slots=True)
class _Grades:
    """Reports of one kind, spread over the two nearest bins of reasoning left, with weights that fade."""

    total: float = 0.0
    score: float = 0.0
    totals: list[float] = field(default_factory=lambda: [0.0] * BINS)
    scores: list[float] = field(default_factory=lambda: [0.0] * BINS)

    def add(self, left: float | None, score: float) -> None:
        """left: reasoning left, in tokens, if it is known."""
        self.total += 1
        self.score += score
        if left is not None:
            bin_, above = _place(left)
            for index, part in ((bin_, 1 - above), (bin_ + 1, above)):
                self.totals[index] += part
                self.scores[index] += part * score
        if self.total > MEMORY_REPORTS:
            self.fade(MEMORY_REPORTS / self.total)

    def fade(self, factor: float) -> None:
        """Multiplies all weights."""
        self.total *= factor
        self.score *= factor
        self.totals = [total * factor for total in self.totals]
        self.scores = [score * factor for score in self.scores]

    def near(self, left: float | None) -> tuple[float, float]:
        """Mean score with about so much reasoning left, and how many reports it stands on."""
        if self.total == 0:
            return 0.0, 0.0
        total = score = 0.0
        if left is not None:
            bin_, above = _place(left)
            total = (1 - above) * self.totals[bin_] + above * self.totals[bin_ + 1]
            score = (1 - above) * self.scores[bin_] + above * self.scores[bin_ + 1]
        borrowed = min(BORROWED_REPORTS, self.total)
        mean = (score + borrowed * self.score / self.total) / (total + borrowed)
        return mean, min(self.total, total + borrowed)


def _place(left: float) -> tuple[int, float]:
    """A bin, and the part of a sample that belongs to the next."""
    above, bin_ = math.modf(min(2 * math.log2(1 + left), BINS - 1.001))
    return int(bin_), above


class _Evidence:
    """What was reported under one rule, and the curves made of it."""

    def __init__(self, now_s: float) -> None:
        self._grades = {ended: _Grades() for ended in Ended}
        self._faded_s = now_s
        self._new = 0
        # By identity: equal ones would have to be compared value by value.
        self._cached: dict[tuple[int, int], tuple[StopCurve, TenantPolicy, TenantPolicy]] = {}

    def learn(self, trial: Trial, score: float, now_s: float) -> None:
        self._fade(now_s)
        self._grades[trial.ended].add(trial.left_tokens, score)
        self._new += 1
        if self._new > min(16.0, self._reports() / 8):
            self._new = 0
            self._cached.clear()

    def apply(self, policy: TenantPolicy, stops: StopCurve, now_s: float) -> TenantPolicy:
        if now_s - self._faded_s > FADE_EVERY_S:
            self._fade(now_s)
            self._cached.clear()
        key = (id(stops), id(policy))
        known = self._cached.get(key)
        if known is None:
            if len(self._cached) >= MOST_CACHED:
                self._cached.clear()
            known = self._cached[key] = (stops, policy, self._learnt(policy, stops))
        return known[2]

    def _reports(self) -> float:
        return sum(grades.total for grades in self._grades.values())

    def _fade(self, now_s: float) -> None:
        factor = 0.5 ** ((now_s - self._faded_s) / HALF_LIFE_S)
        for grades in self._grades.values():
            grades.fade(factor)
        self._faded_s = now_s

    def _learnt(self, policy: TenantPolicy, stops: StopCurve) -> TenantPolicy:
        granted, most = policy.quality, policy.budget.max_tokens
        if granted.curve is None and self._reports() < LEAST_REPORTS:
            return policy
        curve = self._curve(granted.curve, stops, most)
        quality = Quality(curve, granted.floor, _floor_budget(curve, granted.floor, most), granted.learn)
        return replace(policy, quality=quality)

    def _curve(self, prior: QualityCurve | None, stops: StopCurve, most: int) -> QualityCurve:
        lengths = (stops.quantile(level) for level in KNOT_LEVELS)
        stopping = {int(length) for length in lengths if length < math.inf}
        # What is cut at once is not what was never begun.
        begun = {1, min(stopping) // 2} - {0} if stopping else {1}
        budgets = sorted({0, *begun, *stopping, *(prior.budgets if prior is not None else (most,))})
        points = [self._point(budget, prior, stops) for budget in budgets]
        # Answering at once may be better than thinking too little; thinking more is never worse than less,
        # unless the policy says so.
        falls = _falls(prior, budgets[1:])
        return QualityCurve(tuple(budgets), (points[0][0], *_rising(points[1:], falls)))

    def _point(self, budget: int, prior: QualityCurve | None, stops: StopCurve) -> tuple[float, float]:
        """Quality at a budget, and how many reports, the prior's among them, it stands on."""
        stopping = stops.stopped_by(budget) if budget > 0 else 0.0
        stopped = self._grades[Ended.STOPPED].near(left_tokens(stops, 0))
        others = self._grades[Ended.CUT if budget > 0 else Ended.WITHOUT].near(left_tokens(stops, budget))
        if prior is not None:
            expected = prior.at(budget)
        else:
            best = (stopped[0] * stopped[1] + 1) / (stopped[1] + 2)  # from a uniform prior
            expected = best * (NEUTRAL_WITHOUT + (1 - NEUTRAL_WITHOUT) * stopping)
        stopped_mean, stopped_count = _with_unseen(stopped, expected)
        others_mean, others_count = _with_unseen(others, expected)
        seen = stopping * stopped_mean + (1 - stopping) * others_mean
        # As many reports of the mixture would tell as much as these of its parts.
        count = 1 / (stopping**2 / stopped_count + (1 - stopping) ** 2 / others_count)
        return (PRIOR_REPORTS * expected + count * seen) / (PRIOR_REPORTS + count), PRIOR_REPORTS + count


def _with_unseen(seen: tuple[float, float], expected: float) -> tuple[float, float]:
    """Mean and reports of a kind with a little of what is expected, which is all that there is of some."""
    mean, count = seen
    total = count + UNSEEN_REPORTS
    return (mean * count + expected * UNSEEN_REPORTS) / total, total


def _falls(prior: QualityCurve | None, budgets: Sequence[int]) -> list[float]:
    """By how much the policy's curve has fallen in all, from the first of these budgets up to each."""
    if prior is None:
        return [0.0] * len(budgets)
    values = [prior.at(budget) for budget in budgets]
    steps = (max(0.0, before - after) for before, after in itertools.pairwise(values))
    return list(itertools.accumulate(steps, initial=0.0))


def _rising(points: Sequence[tuple[float, float]], falls: Sequence[float]) -> list[float]:
    """The values nearest to those of (value, reports) points that fall by no more than they may (pool
    adjacent violators; Barlow et al. 1972).
    """
    pools: list[tuple[float, float, int]] = []  # mean, reports, members
    for (value, reports), fall in zip(points, falls, strict=True):
        mean, count, members = value + fall, reports, 1
        while pools and pools[-1][0] > mean:
            its_mean, its_count, its_members = pools.pop()
            mean = (mean * count + its_mean * its_count) / (count + its_count)
            count, members = count + its_count, members + its_members
        pools.append((mean, count, members))
    level = [mean for mean, _, members in pools for _ in range(members)]
    return [min(1.0, max(0.0, mean - fall)) for mean, fall in zip(level, falls, strict=True)]


def _floor_budget(curve: QualityCurve, floor: float, most: int) -> int:
    """The least budget that reaches the floor, or comes nearest within the most that is granted."""
    reached = curve.least_budget(floor)
    if reached is not None and reached <= most:
        return reached
    return max(curve.points_within(0, most), key=curve.at)
