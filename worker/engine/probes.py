"""Answer probes: whether more thinking still changes the answer (see ProbeRule in worker.proto).

Decided here is when a reasoning is probed and when its answers are stable; the engine runs the probes.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of a checkpoint, for the end of a line or sentence: about a line.
_PATIENCE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ProbeRule:
    """When a reasoning is probed, in its tokens. Raises ValueError for numbers out of range."""

    first_tokens: int
    """At the first checkpoint. At least 1."""
    every_tokens: int
    """From one checkpoint to the next. At least 1."""
    stable_answers: int
    """Equal answers in a row that end the reasoning. At least 2."""
    answer_tokens: int
    """At most, of a probe. At least 1."""

    def __post_init__(self) -> None:
        if min(self.first_tokens, self.every_tokens, self.answer_tokens) < 1 or self.stable_answers < 2:
            raise ValueError(f"all numbers must be >= 1, stable_answers >= 2: {self}")


class ProbeLog:
    """Checkpoints and answers of one reasoning.

    For reading: `begun` and `skipped` probes, and what they took in `tokens`; the engine counts them here.
    """

    __slots__ = ("_equal", "_last", "_next", "begun", "rule", "skipped", "tokens")

    def __init__(self, rule: ProbeRule, reasoning_tokens: int = 0) -> None:
        """reasoning_tokens: of a sequence that is resumed. Its checkpoints are the same, its answers new."""
        self.rule = rule
        self._next = rule.first_tokens
        self._last: str | None = None
        self._equal = 0
        self.begun = self.skipped = self.tokens = 0
        self._pass(reasoning_tokens)

    def due(self, reasoning_tokens: int, *, at_boundary: bool) -> bool:
        """Whether a checkpoint is reached, which is then behind. Ask after each token.

        at_boundary: the reasoning stands at the end of a line or sentence.
        """
        patience = 0 if at_boundary else min(self.rule.every_tokens // 2, _PATIENCE_TOKENS)
        if reasoning_tokens < self._next + patience:
            return False
        self._pass(reasoning_tokens)
        return True

    def stable(self, answer: str) -> bool:
        """Takes the answer of the next probe: whether as many in a row as the rule asks for are equal."""
        words = " ".join(answer.split())
        self._equal = self._equal + 1 if words == self._last else 1
        self._last = words
        return self._equal >= self.rule.stable_answers

    def _pass(self, reasoning_tokens: int) -> None:
        while self._next <= reasoning_tokens:
            self._next += self.rule.every_tokens
