"""How long a tenant's prompts, reasoning and answers are."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.planning.quantiles import Quantiles, SampleWindow

WINDOW = 512
MAX_AGE_S = 1800.0
COLD_ANSWER_TOKENS = 256
"""Answer reserve of a tenant that has shown no answers."""
LEAST_ANSWER_TOKENS = 16
MOST_ANSWER_TOKENS = 2048


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

    def quantile(self, level: float) -> float:
        """Tokens within which reasoning stops with this probability; infinite beyond the curve's reach."""
        index = bisect_left(self.stopped, level - 1e-9)
        return self.lengths[index] if index < len(self.lengths) else math.inf

    def expected_use(self, budget: int) -> float:
        """E[min(L, budget)]: tokens that a budget is expected to use."""
        index = bisect_right(self.lengths, budget) - 1
        if index < 0:
            return float(budget)
        return self.mean_up_to[index] + (1 - self.stopped[index]) * (budget - self.lengths[index])


@dataclass(frozen=True, slots=True)
class LengthEstimate:
    """What is known of a tenant's lengths, in tokens.

    answer_reserve: what should be kept back for an answer when the policy does not say.
    """

    reasoning: StopCurve = field(default_factory=StopCurve)
    answer: Quantiles = field(default_factory=Quantiles)
    answer_reserve: int = COLD_ANSWER_TOKENS


class LengthModel:
    """Learns one tenant's lengths from what its requests used."""

    def __init__(self) -> None:
        self._reasoning: deque[tuple[int, bool]] = deque(maxlen=WINDOW)
        self._answer = SampleWindow(WINDOW, MAX_AGE_S)
        self._unused = 0
        self._stops = StopCurve()
        self._estimate = LengthEstimate()
        self._prompts_seen = 0
        self._prompt_ratio = 1.0

    def learn_reasoning(self, tokens: int, stopped: bool) -> None:
        """Reasoning used `tokens` and ended by itself, or was ended there."""
        self._reasoning.append((tokens, stopped))
        self._unused += 1
        if self._unused > min(16, len(self._reasoning) // 8):
            self._stops = StopCurve.estimate(self._reasoning)
            self._unused = 0

    def learn_answer(self, tokens: int, now_s: float) -> None:
        """An answer took `tokens`."""
        self._answer.add(tokens, now_s)

    def learn_prompt(self, estimated_tokens: int, exact_tokens: int) -> None:
        """A prompt estimated with this model's own ratio turned out to have `exact_tokens`."""
        self._prompts_seen += 1
        observed = self._prompt_ratio * exact_tokens / max(1, estimated_tokens)
        self._prompt_ratio += (observed - self._prompt_ratio) / min(self._prompts_seen, 16)

    def prompt_tokens(self, text_bytes: int, bytes_per_token: float) -> int:
        """Tokens that a prompt of so many bytes of text is expected to have, chat format included. At least
        1.
        """
        return max(1, math.ceil(self._prompt_ratio * text_bytes / bytes_per_token))

    def estimate(self, now_s: float) -> LengthEstimate:
        """What is known as of `now_s`."""
        answer = self._answer.table(now_s)
        if answer is not self._estimate.answer or self._stops is not self._estimate.reasoning:
            # Half as much again as nearly all answers took; answers cut by the reserve raise it.
            wanted = math.ceil(1.5 * answer.at(0.99, COLD_ANSWER_TOKENS / 1.5))
            reserve = min(max(wanted, LEAST_ANSWER_TOKENS), MOST_ANSWER_TOKENS)
            self._estimate = LengthEstimate(self._stops, answer, reserve)
        return self._estimate
