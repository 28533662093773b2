"""What the demonstration's requests came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from rich.table import Table

from curfew import Mode, ReasoningEnd, Reply
from curfew.show import spoken


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request that was answered."""

    tenant: str
    reply: Reply
    right: bool

    @property
    def cut(self) -> bool:
        """Whether its thinking was cut."""
        return self.reply.completion.reasoning_end.is_cut


def summary(outcomes: Sequence[Outcome], tenants: Sequence[str]) -> Table:
    """A row for each tenant."""
    table = Table(title="what was promised, and what came", title_justify="left")
    for heading in ("tenant", "promised", "kept", "median", "thought", "cut", "reasoning", "right"):
        table.add_column(heading, justify="left" if heading in ("tenant", "promised") else "right")
    for tenant in tenants:
        own = [o for o in outcomes if o.tenant == tenant]
        plan = own[0].reply.plan
        thought = [o for o in own if o.reply.plan.mode is Mode.THINK]
        table.add_row(
            tenant,
            f"{spoken(plan.deadline_s or 0)} to {plan.target_share:.0%}",
            f"{mean(o.reply.completion.kept for o in own):.0%}",
            spoken(median(o.reply.completion.latency_s for o in own)),
            f"{len(thought)}/{len(own)}",
            f"{sum(o.cut for o in own)}/{len(own)}",
            f"{mean(o.reply.completion.usage.reasoning_tokens for o in own):.0f} tokens",
            f"{mean(o.right for o in own):.0%}",
        )
    return table


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """What must not be: an empty answer, a budget exceeded, a way of answering that was never seen."""
    found = []
    for outcome in outcomes:
        budget = outcome.reply.plan.budget
        most = budget.reasoning_tokens + budget.grace_tokens if budget.reasoning_tokens else 0
        used = outcome.reply.completion.usage.reasoning_tokens
        if used > most:
            found.append(f"{outcome.tenant}: {used} reasoning tokens exceed {most}")
        if not outcome.reply.answer.strip():
            found.append(f"{outcome.tenant}: an empty answer")
    seen = {
        "an answer after thinking to the natural end": any(
            o.reply.completion.reasoning_end is ReasoningEnd.NATURAL for o in outcomes
        ),
        "an answer forced by a cut": any(o.cut for o in outcomes),
        "an answer without thinking": any(o.reply.plan.mode is Mode.NO_THINK for o in outcomes),
    }
    return found + [f"never seen: {what}" for what, was_seen in seen.items() if not was_seen]
