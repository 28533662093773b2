"""The time that a plan takes, as a quantile.

What delays a request – a busy machine, a large batch, a long answer – mostly delays all of it, so its parts
are taken to be comonotone: the quantile of their sum is the sum of their quantiles (Dhaene et al. 2002). For
parts that are in truth less dependent this errs on the safe side at the levels that promises are made for,
and it keeps a decision cheap and its arithmetic short enough to be told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controller.planning.lengths import LengthEstimate
from controller.planning.quantiles import SOME, Quantiles
from controller.planning.speed import COLD_RATIO, SpeedEstimate
from controller.policy import Objectives

CLOSING_STEPS = 1
"""The closing text is fed in one step, however many tokens it has."""
MARGIN_SHARE = 0.02
"""Part of a deadline, beside one step, that plans leave free: reasoning is cut between steps, and messages
travel.
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """Everything that a request's latency is made of, each at the same quantile.

    wait_s, prefill_s: until the first token; all that is uncertain about it is in the wait. step_s: for each
    token after it. reasoning_tokens: where reasoning would stop by itself, possibly infinite. answer_tokens:
    how long the answer is.
    """

    wait_s: float
    prefill_s: float
    step_s: float
    reasoning_tokens: float
    answer_tokens: int

    @property
    def start_s(self) -> float:
        """Receipt to first token."""
        return self.wait_s + self.prefill_s

    def tail_s(self, grace_tokens: int, answer_tokens: int) -> float:
        """What follows when reasoning is told to end: grace, closing text, so many tokens of the answer."""
        return (grace_tokens + CLOSING_STEPS + answer_tokens) * self.step_s

    def no_think_s(self) -> float:
        """Receipt to end without reasoning; the first token comes with the prefill."""
        return self.start_s + (self.answer_tokens - 1) * self.step_s

    def reasoning_used(self, cut: int, reason_until_s: float | None, grace_tokens: int) -> float:
        """Tokens of reasoning that ends by itself, or at `cut` tokens, or at a time and then its grace."""
        used = min(self.reasoning_tokens, cut)
        if reason_until_s is None:
            return used
        by_then = (reason_until_s - self.start_s) / self.step_s + 1
        return min(used, max(0.0, by_then) + grace_tokens)

    def think_s(self, reasoning_tokens: float) -> float:
        """Receipt to end with so much reasoning."""
        return self.start_s + (reasoning_tokens + CLOSING_STEPS + self.answer_tokens - 1) * self.step_s

    def room_tokens(self, until_s: float, answer_tokens: int) -> float:
        """Reasoning tokens that fit before `until_s` with the closing text and part of the answer."""
        return (until_s - self.start_s) / self.step_s + 1 - CLOSING_STEPS - answer_tokens


@dataclass(frozen=True, slots=True)
class Times:
    """The promises of a request, in seconds from receipt (per_token_s: between tokens); infinite when not
    promised.
    """

    deadline_s: float
    first_token_s: float
    first_answer_token_s: float
    per_token_s: float

    @classmethod
    def of(cls, objectives: Objectives, wished_deadline_s: float | None) -> Times:
        """A tenant's objectives, with the tighter of its deadline and the caller's."""
        deadline_s = _or_infinite(objectives.deadline_s)
        if wished_deadline_s is not None:
            deadline_s = min(deadline_s, wished_deadline_s)
        return cls(
            deadline_s,
            _or_infinite(objectives.first_token_s),
            _or_infinite(objectives.first_answer_token_s),
            _or_infinite(objectives.per_token_s),
        )

    def deadline(self) -> float | None:
        """The deadline, None when there is none."""
        return None if math.isinf(self.deadline_s) else self.deadline_s

    def keeps_start(self, pace: Pace) -> bool:
        """Whether a pace keeps those promises that no budget has an influence on."""
        return pace.start_s <= self.first_token_s and pace.step_s <= self.per_token_s

    def keeps_no_think(self, pace: Pace) -> bool:
        """Whether a pace keeps all promises without reasoning."""
        return (
            self.keeps_start(pace)
            and pace.start_s <= self.first_answer_token_s
            and pace.no_think_s() <= self.deadline_s
        )

    def room_tokens(self, pace: Pace) -> float:
        """Reasoning tokens with which a pace keeps all promises: infinite when reasoning stops in time by
        itself, below 1 when none do."""
        if not self.keeps_start(pace):
            return -1
        margin_s = self._margin_s(pace)
        room = min(
            pace.room_tokens(self.deadline_s - margin_s, pace.answer_tokens),
            pace.room_tokens(self.first_answer_token_s - margin_s, 1),
        )
        return math.inf if pace.reasoning_tokens <= room else room

    def reason_until_s(self, pace: Pace, grace_tokens: int) -> float | None:
        """When reasoning must be told to end for what follows to keep them; None when none depends on it."""
        until = min(
            self.deadline_s - pace.tail_s(grace_tokens, pace.answer_tokens),
            self.first_answer_token_s - pace.tail_s(grace_tokens, 1),
        )
        return None if math.isinf(until) else max(0.0, until - self._margin_s(pace))

    def _margin_s(self, pace: Pace) -> float:
        tightest = min(self.deadline_s, self.first_answer_token_s)
        return pace.step_s + (0.0 if math.isinf(tightest) else MARGIN_SHARE * tightest)


def _usual(seen: Quantiles, measured: float) -> float:
    """What the worker measured itself, or what was seen of it if that is better; a worse one counts anyway,
    through all that was seen.
    """
    return measured if seen.median is None else min(measured, seen.median)


def _or_infinite(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a request would fare on a worker, at any quantile.

    answer_tokens: the reserve, which an answer is taken to use where its tenant has not shown how long
    answers are.
    """

    speed: SpeedEstimate
    lengths: LengthEstimate
    prompt_tokens: int
    answer_tokens: int

    @property
    def vouched_level(self) -> float:
        """The highest level for which the worker has shown enough requests."""
        seen = len(self.speed.start_excess.values)
        return seen / (seen + 1)

    def at(self, level: float) -> Pace:
        """The pace that is kept with this probability, taking what was never seen for bad: `COLD_RATIO` times
        what is usual.
        """
        speed, lengths = self.speed, self.lengths
        return self._pace(
            level,
            speed.start_excess.at(level, _usual(speed.start_excess, 0.0) + COLD_RATIO - 1),
            speed.step_ratio.at(level, _usual(speed.step_ratio, 1.0) * COLD_RATIO),
            lengths.answer.at(level, self._longest_answer()),
        )

    def at_best(self, level: float) -> Pace:
        """The best pace that what was seen allows: a promise that even this breaks cannot be kept."""
        speed, lengths = self.speed, self.lengths
        return self._pace(
            level,
            speed.start_excess.at_best(level, 0.0),
            speed.step_ratio.at_best(level, 1.0),
            lengths.answer.at_best(level, 1.0),
        )

    def _longest_answer(self) -> int:
        """What an answer is taken to use where those seen are too few to tell: the reserve, or twice the
        longest of some.
        """
        seen = self.lengths.answer.values
        if len(seen) < SOME:
            return self.answer_tokens
        return min(self.answer_tokens, math.ceil(2 * seen[-1]))

    def _pace(self, level: float, start_excess: float, step_ratio: float, answer: float) -> Pace:
        speed = self.speed
        prefill_s = speed.prefill_s(self.prompt_tokens)
        return Pace(
            max(0.0, speed.start_s(self.prompt_tokens, start_excess) - prefill_s),
            prefill_s,
            speed.step_s * step_ratio,
            self.lengths.reasoning.quantile(level),
            max(1, min(self.answer_tokens, math.ceil(answer))),
        )
