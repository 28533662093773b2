"""How long a tenant's prompts, reasoning and answers are."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from controller.planning.quantiles import Quantiles
from controller.planning.stops import StopCurve
from controller.planning.strata import PromptStrata, Sample

__all__ = ["LengthEstimate", "LengthModel", "StopCurve"]

WINDOW = 512
MAX_AGE_S = 1800.0
COLD_ANSWER_TOKENS = 256
"""Answer reserve of a tenant that has shown no answers."""
LEAST_ANSWER_TOKENS = 16
MOST_ANSWER_TOKENS = 2048
LEAST_REASONING_CLASS = 24
"""Of a request class: a 95th percentile lies among 19 samples."""
LEAST_ANSWER_CLASS = 100
"""A 99th percentile lies among 99; of answers even the rare ones count, since their room is kept free."""
PROMPTS = 64
"""The ratio of tokens to bytes is that of about so many of the last prompts."""


@dataclass(frozen=True, slots=True)
class LengthEstimate:
    """What is known of the lengths to expect, in tokens.

    answer_reserve: what should be kept back for an answer when the policy does not say.
    """

    reasoning: StopCurve = field(default_factory=StopCurve)
    answer: Quantiles = field(default_factory=Quantiles)
    answer_reserve: int = COLD_ANSWER_TOKENS


class LengthModel:
    """Learns one tenant's lengths from what its requests used, by classes of prompts of like length.

    Prompts are measured by their estimates, when learning too: the exact count is not known when it is
    needed.
    """

    def __init__(self) -> None:
        self._reasoning = PromptStrata(WINDOW, math.inf, LEAST_REASONING_CLASS, _stops)
        self._answer = PromptStrata(WINDOW, MAX_AGE_S, LEAST_ANSWER_CLASS, _quantiles)
        self._reserve_of = Quantiles()
        self._reserve = COLD_ANSWER_TOKENS
        self._prompts_seen = 0
        self._prompt_ratio = 1.0

    def learn_reasoning(self, tokens: int, stopped: bool, prompt_tokens: int = 0) -> None:
        """Reasoning used `tokens` and ended by itself, or was ended there."""
        self._reasoning.add((prompt_tokens, tokens, stopped, 0.0))

    def learn_answer(self, tokens: int, now_s: float, prompt_tokens: int = 0) -> None:
        """An answer took `tokens`."""
        self._answer.add((prompt_tokens, tokens, True, now_s))

    def learn_prompt(self, estimated_tokens: int, exact_tokens: int) -> None:
        """A prompt estimated with this model's own ratio turned out to have `exact_tokens`."""
        self._prompts_seen += 1
        observed = self._prompt_ratio * exact_tokens / max(1, estimated_tokens)
        self._prompt_ratio += (observed - self._prompt_ratio) / min(self._prompts_seen, PROMPTS)

    def prompt_tokens(self, text_bytes: int, bytes_per_token: float) -> int:
        """Tokens that a prompt of so many bytes of text is expected to have, chat format included. At least
        1.
        """
        return max(1, math.ceil(self._prompt_ratio * text_bytes / bytes_per_token))

    def estimate(self, now_s: float, prompt_tokens: int | None = None) -> LengthEstimate:
        """What is known as of `now_s` for prompts like one of about so many tokens; by default for all."""
        answers = self._answer.overall(now_s)
        if answers is not self._reserve_of:
            # Half as much again as nearly all answers took; answers cut by the reserve raise it.
            wanted = math.ceil(1.5 * answers.at(0.99, COLD_ANSWER_TOKENS / 1.5))
            self._reserve = min(max(wanted, LEAST_ANSWER_TOKENS), MOST_ANSWER_TOKENS)
            self._reserve_of = answers
        if prompt_tokens is None:
            return LengthEstimate(self._reasoning.overall(now_s), answers, self._reserve)
        return LengthEstimate(
            self._reasoning.of(prompt_tokens, now_s), self._answer.of(prompt_tokens, now_s), self._reserve
        )


def _stops(samples: Collection[Sample]) -> StopCurve:
    return StopCurve.estimate((tokens, stopped) for _, tokens, stopped, _ in samples)


def _quantiles(samples: Collection[Sample]) -> Quantiles:
    return Quantiles.of(tokens for _, tokens, _, _ in samples)
