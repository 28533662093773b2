"""What an agent is handed back."""

from __future__ import annotations

from dataclasses import dataclass

from curfew.client import Reply
from curfew.show.words import planned

MOST_REASONING = 2000
"""Characters of the reasoning that are handed back: its end, which holds the conclusion."""


@dataclass(frozen=True)  # mcp takes slots for defaults
class Planned:
    """What was decided before the model began. deadline_ms: None without one. why: in words and numbers."""

    mode: str
    reasoning_tokens: int
    deadline_ms: float | None
    promised_probability: float
    summary: str
    why: str


@dataclass(frozen=True)  # mcp takes slots for defaults
class Reasoned:
    """An answer. reasoning: what led to it, word for word, of a long one the end. reasoning_tokens: of all of
    it. reasoning_end: natural when the model had thought enough; budget or deadline when it was cut. kept:
    whether the deadline, and whatever else was promised, was kept.
    """

    answer: str
    reasoning: str
    reasoning_tokens: int
    reasoning_end: str
    plan: Planned
    latency_ms: float
    kept: bool


def reasoned(reply: Reply) -> Reasoned:
    """A reply in the agent's terms."""
    plan, completion = reply.plan, reply.completion
    cut = len(reply.reasoning) > MOST_REASONING
    return Reasoned(
        answer=reply.answer,
        reasoning=f"… {reply.reasoning[-MOST_REASONING:]}" if cut else reply.reasoning,
        reasoning_tokens=completion.usage.reasoning_tokens,
        reasoning_end=completion.reasoning_end.name.lower(),
        plan=Planned(
            mode=plan.mode.name.lower(),
            reasoning_tokens=plan.budget.reasoning_tokens,
            deadline_ms=None if plan.deadline_s is None else round(plan.deadline_s * 1000, 1),
            promised_probability=round(plan.promised_probability, 4),
            summary=planned(plan),
            why=plan.why,
        ),
        latency_ms=round(completion.latency_s * 1000, 1),
        kept=completion.kept,
    )
