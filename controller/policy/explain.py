"""How a policy meets one request: which rule, which plan, why, and what would bring more thinking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from controller.planning.decision import Decision, Mode, Refusal
from controller.planning.lengths import LengthEstimate
from controller.policy.case import Case
from controller.policy.diff import format_probe
from controller.policy.model import Limits, ModePolicy, Objectives, Rule, TenantPolicy
from controller.policy.units import MAX_COUNT, format_duration, format_rate, format_share


def explain(tenant: TenantPolicy, case: Case) -> str:
    """The whole account, in lines."""
    policy = tenant.for_labels(case.labels)
    outcome = case.plan(policy)
    lines = [
        f"request  {case.input_tokens} input tokens, {_labels(case.labels)}",
        f"rule     {policy.rule}: {_rule(tenant, case.labels)}",
        f"promise  {_promise(policy.objectives)}",
        f"limits   {_limits(policy.limits)}",
        *([] if policy.probe is None else [f"probes   {format_probe(policy.probe)}"]),
        *([] if policy.hedge_s is None else [f"hedge    at a second worker after {_hedge(policy.hedge_s)}"]),
        f"worker   {_worker(case)}",
        f"plan     {_plan(policy, outcome)}",
        f"because  {outcome.why}",
        "",
        *_more(policy, case, outcome),
    ]
    return "".join(f"{line}\n" for line in lines)


def _hedge(hedge_s: float) -> str:
    return f"{format_duration(hedge_s)} without a token"


def _labels(labels: Mapping[str, str]) -> str:
    shown = ", ".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"labels {shown}" if shown else "no labels"


def _rule(tenant: TenantPolicy, labels: Mapping[str, str]) -> str:
    matching = next((rule for rule in tenant.rules if rule.matches(labels)), None)
    if matching is not None:
        return f"the first of {tenant.name}'s rules that matches, by {_match(matching)}"
    if not tenant.rules:
        return f"{tenant.name} has no rules"
    return f"none of {tenant.name}'s rules matches ({'; '.join(_match(rule) for rule in tenant.rules)})"


def _match(rule: Rule) -> str:
    return ", ".join(f"{label}={'|'.join(values)}" for label, values in rule.match.items())


def _promise(objectives: Objectives) -> str:
    times = [
        f"{name} {format_duration(seconds)}"
        for name, read in _TIMES.items()
        if (seconds := read(objectives)) is not None
    ]
    return f"{', '.join(times)}; kept for {format_share(objectives.share)}" if times else "no time"


def _limits(limits: Limits) -> str:
    found = []
    if limits.rate is not None:
        found.append(f"{format_rate(limits.rate)} requests, {limits.burst} at once")
    if limits.tokens is not None:
        found.append(f"{format_rate(limits.tokens)} tokens")
    if limits.concurrency is not None:
        found.append(f"{limits.concurrency} waiting or running")
    return "; ".join(found) or "none"


def _worker(case: Case) -> str:
    step_s = case.speed().step_s
    return (
        f"{case.running} other requests running: {format_duration(step_s)} a step, "
        f"{case.worker.prefill_tokens_per_s:.0f} prompt tokens a second ({case.worker.source})"
    )


def _plan(policy: TenantPolicy, outcome: Decision | Refusal) -> str:
    if isinstance(outcome, Refusal):
        return f"refused; the fastest would take {format_duration(outcome.predicted_s)}"
    kind = "answer at once" if outcome.mode is Mode.NO_THINK else f"think, {outcome.budget_tokens} tokens"
    if outcome.grace_tokens:
        kind += f" and {outcome.grace_tokens} to end a sentence"
    quality = ""
    if policy.quality.curve is not None:
        quality = f"; expected quality {policy.quality.curve.at(outcome.budget_tokens):.3g}"
        quality += " until outcomes are reported" if policy.quality.learn else ""
    reserve = f"{outcome.answer_tokens} tokens kept for the answer"
    return f"{kind}; {reserve}; done in {format_duration(outcome.predicted_s)}{quality}"


def _more(policy: TenantPolicy, case: Case, outcome: Decision | Refusal) -> Iterator[str]:
    """What would bring more thinking, or acceptance, each change alone and tried on the planner."""
    now = 0 if isinstance(outcome, Refusal) else outcome.budget_tokens
    aim = "be accepted" if isinstance(outcome, Refusal) else "think more"
    tried: list[str] = []
    found: list[str] = []
    for changes in _changes(policy, case):
        worked: list[str] = []
        best = -1 if isinstance(outcome, Refusal) else now
        for change in changes:
            tried.append(change.words)
            then = change.case.plan(change.policy)
            if isinstance(then, Decision) and then.budget_tokens > best:
                best = then.budget_tokens
                worked.append(f"  {change.words}: {_brief(change.policy, then)}")
        found += worked[:2]
    curve = policy.quality.curve
    if found:
        yield f"To {aim}, each of these alone would do:"
        yield from found
    elif isinstance(outcome, Decision) and curve is not None and now >= curve.budgets[-1]:
        yield f"More thinking would not help: the curve is level after {curve.budgets[-1]} tokens."
    else:
        yield f"To {aim}, no change that was tried suffices alone: {', '.join(tried)}."


def _brief(policy: TenantPolicy, decision: Decision) -> str:
    if decision.budget_tokens == 0:
        return "answer at once"
    curve = policy.quality.curve
    quality = "" if curve is None else f", quality {curve.at(decision.budget_tokens):.3g}"
    return f"{decision.budget_tokens} tokens{quality}"


@dataclass(frozen=True, slots=True)
class _Change:
    """One setting or circumstance that is otherwise, and what policy and case it makes."""

    words: str
    policy: TenantPolicy
    case: Case


def _changes(policy: TenantPolicy, case: Case) -> Iterator[list[_Change]]:
    """Changes that may leave more room, those of the same thing together, the smaller first."""
    for name, read in _TIMES.items():
        promised_s = read(policy.objectives)
        if promised_s is not None:
            yield [
                _slower(policy, case, name, round(factor * promised_s, 9)) for factor in (1.5, 2, 3, 5, 10)
            ]
    budget = policy.budget
    if budget.max_tokens < MAX_COUNT:
        most = min(MAX_COUNT, max(100, 2 * budget.max_tokens))
        yield [_Change(f"budget.max {most}", replace(policy, budget=replace(budget, max_tokens=most)), case)]
    if budget.min_tokens > 0:
        yield [_Change("budget.min 0", replace(policy, budget=replace(budget, min_tokens=0)), case)]
    reserve = budget.answer_tokens or LengthEstimate().answer_reserve
    if reserve > 1:
        less = replace(policy, budget=replace(budget, answer_tokens=reserve // 2))
        yield [_Change(f"budget.answer {reserve // 2}", less, case)]
    if policy.mode is not ModePolicy.AUTO:
        yield [_Change("mode auto", replace(policy, mode=ModePolicy.AUTO), case)]
    if policy.quality.floor_budget > 0:
        lower = replace(policy.quality, floor=0.0, floor_budget=0)
        yield [_Change("no quality floor", replace(policy, quality=lower), case)]
    if case.input_tokens > 1:
        half = case.input_tokens // 2
        yield [_Change(f"{half} input tokens", policy, replace(case, input_tokens=half))]
    if case.running > 0:
        yield [_Change("no other requests running", policy, replace(case, running=0))]


def _slower(policy: TenantPolicy, case: Case, name: str, seconds: float) -> _Change:
    objectives = _WITH_TIME[name](policy.objectives, seconds)
    return _Change(f"{name} {format_duration(seconds)}", replace(policy, objectives=objectives), case)


_TIMES: Mapping[str, Callable[[Objectives], float | None]] = {
    "deadline": lambda objectives: objectives.deadline_s,
    "first token": lambda objectives: objectives.first_token_s,
    "first answer token": lambda objectives: objectives.first_answer_token_s,
    "per token": lambda objectives: objectives.per_token_s,
}
_WITH_TIME: Mapping[str, Callable[[Objectives, float], Objectives]] = {
    "deadline": lambda objectives, seconds: replace(objectives, deadline_s=seconds),
    "first token": lambda objectives, seconds: replace(objectives, first_token_s=seconds),
    "first answer token": lambda objectives, seconds: replace(objectives, first_answer_token_s=seconds),
    "per token": lambda objectives, seconds: replace(objectives, per_token_s=seconds),
}
