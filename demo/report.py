"""What the demonstration's requests came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from rich.table import Table

from curfew.show import milliseconds
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

_CUTS = (pb.REASONING_END_BUDGET, pb.REASONING_END_DEADLINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request that was answered."""

    tenant: str
    plan: reasoning_pb2.Plan
    completion: reasoning_pb2.Completion
    answer: str
    right: bool

    @property
    def cut(self) -> bool:
        """Whether its thinking was cut."""
        return self.completion.reasoning_end in _CUTS

    @property
    def kept(self) -> bool:
        """Whether every objective was kept."""
        return all(result.kept for result in self.completion.objectives)


def summary(outcomes: Sequence[Outcome], tenants: Sequence[str]) -> Table:
    """A row for each tenant."""
    table = Table(title="what was promised, and what came", title_justify="left")
    for heading in ("tenant", "promised", "kept", "median", "thought", "cut", "reasoning", "right"):
        table.add_column(heading, justify="left" if heading in ("tenant", "promised") else "right")
    for tenant in tenants:
        own = [o for o in outcomes if o.tenant == tenant]
        plan = own[0].plan
        thought = [o for o in own if o.plan.mode == pb.MODE_THINK]
        table.add_row(
            tenant,
            f"{milliseconds(plan.deadline):.0f} ms to {plan.target_share:.0%}",
            f"{mean(o.kept for o in own):.0%}",
            f"{median(milliseconds(o.completion.latency) for o in own):.0f} ms",
            f"{len(thought)}/{len(own)}",
            f"{sum(o.cut for o in own)}/{len(own)}",
            f"{mean(o.completion.usage.reasoning_tokens for o in own):.0f} tokens",
            f"{mean(o.right for o in own):.0%}",
        )
    return table


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """What must not be: an empty answer, a budget exceeded, a way of answering that was never seen."""
    found = []
    for outcome in outcomes:
        budget = outcome.plan.budget
        most = budget.reasoning_tokens + budget.grace_tokens if budget.reasoning_tokens else 0
        used = outcome.completion.usage.reasoning_tokens
        if used > most:
            found.append(f"{outcome.tenant}: {used} reasoning tokens exceed {most}")
        if not outcome.answer.strip():
            found.append(f"{outcome.tenant}: an empty answer")
    seen = {
        "an answer after thinking to the natural end": any(
            o.completion.reasoning_end == pb.REASONING_END_NATURAL for o in outcomes
        ),
        "an answer forced by a cut": any(o.cut for o in outcomes),
        "an answer without thinking": any(o.plan.mode == pb.MODE_NO_THINK for o in outcomes),
    }
    return found + [f"never seen: {what}" for what, was_seen in seen.items() if not was_seen]
