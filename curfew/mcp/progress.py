"""What an agent is told while the model thinks."""

from __future__ import annotations

from dataclasses import dataclass

from curfew.client import Adjustment, Budget, Completion, Delta, Event, Phase, Plan

EVERY_S = 0.2
"""At most one note in so long, however fast tokens come."""


@dataclass(frozen=True, slots=True)
class Note:
    """tokens: that have come; each note has more than the one before. most_tokens: that may come in all.
    message: the same for people.
    """

    tokens: int
    most_tokens: int | None
    message: str


class Progress:
    """Makes a request's events into notes, few of them. Times are seconds from the same beginning."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._noted_s = began_s
        self._noted_tokens = 0
        self._tokens = 0
        self._plan: Plan | None = None
        self._reasoning_tokens = 0
        self._most_tokens: int | None = None

    def take(self, event: Event, now_s: float) -> Note | None:
        """The note to send now, if it is time for one."""
        match event:
            case Plan():
                self._plan = event
                self._most_tokens = _most(event.budget)
            case Adjustment():
                self._most_tokens = _most(event.budget)
            case Delta():
                return self._count(event, now_s)
            case Completion():
                pass
        return None

    def _count(self, delta: Delta, now_s: float) -> Note | None:
        tokens = delta.raw.token_count or len(delta.token_ids)
        self._tokens += tokens
        if delta.phase is Phase.REASONING:
            self._reasoning_tokens += tokens
        if now_s - self._noted_s < EVERY_S or self._tokens == self._noted_tokens:
            return None
        self._noted_s, self._noted_tokens = now_s, self._tokens
        return Note(self._tokens, self._most_tokens, self._message(delta.phase, now_s))

    def _message(self, phase: Phase, now_s: float) -> str:
        doing = "thinking" if phase is Phase.REASONING else "answering"
        text = f"{doing}, {self._reasoning_tokens} tokens of thought so far"
        deadline_s = None if self._plan is None else self._plan.deadline_s
        if deadline_s is None:
            return text
        left_s = self._began_s + deadline_s - now_s
        return f"{text}, {left_s:.1f} s left" if left_s > 0 else f"{text}, {-left_s:.1f} s late"


def _most(budget: Budget) -> int:
    return budget.reasoning_tokens + budget.grace_tokens + budget.answer_tokens
