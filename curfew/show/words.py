"""Values in the words of people."""

from __future__ import annotations

from curfew.client import Completion, Mode, Objective, Plan, ReasoningEnd

_ENDS = {
    ReasoningEnd.BUDGET: "cut: the budget was used up",
    ReasoningEnd.DEADLINE: "cut: the time to think was over",
    ReasoningEnd.LOOP: "cut: it went in circles",
    ReasoningEnd.STABLE: "ended: the answer was stable",
}
_OBJECTIVES = {
    Objective.DEADLINE: "deadline",
    Objective.FIRST_TOKEN: "first token",
    Objective.FIRST_ANSWER_TOKEN: "first answer token",
    Objective.PER_TOKEN: "per token",
}


def spoken(seconds: float) -> str:
    """A duration as people write it: 7.5 ms, 194 ms, 1.24 s, 10 s."""
    ms = seconds * 1000
    if ms >= 1000:
        return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def mode(plan: Plan) -> str:
    """Whether and how much is thought."""
    if plan.mode is Mode.THINK:
        return f"think up to {plan.budget.reasoning_tokens} tokens"
    return "answer at once"


def planned(plan: Plan) -> str:
    """A plan in one line."""
    if plan.deadline_s is None:
        return mode(plan)
    return f"{mode(plan)}; {spoken(plan.deadline_s)} promised to {plan.target_share:.0%} of requests"


def came(completion: Completion) -> str:
    """What came of the promises."""
    if not completion.objectives:
        return f"nothing was promised; {spoken(completion.latency_s)}"
    return ", ".join(
        f"{_OBJECTIVES[result.objective]} {spoken(result.actual_s)} of {spoken(result.promised_s)}"
        f" {'✓' if result.kept else '✗'}"
        for result in completion.objectives
        if result.objective in _OBJECTIVES
    )


def used(completion: Completion) -> str:
    """The tokens used, and why reasoning ended if it was not by itself."""
    usage = completion.usage
    counts = {
        "reasoning": usage.reasoning_tokens,
        "forced": usage.forced_tokens,
        "answer": usage.answer_tokens,
        "probe": usage.probe_tokens,
    }
    tokens = " + ".join(f"{count} {name}" for name, count in counts.items() if count)
    end = _ENDS.get(completion.reasoning_end)
    return f"{tokens} tokens" + (f" ({end})" if end else "")
