"""Which promises cannot hold on a worker of known speed, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from controller.planning.planner import Prospect
from controller.policy.case import Case
from controller.policy.document import Path, Problem, read_document
from controller.policy.model import Policy, TenantPolicy
from controller.policy.units import format_duration as shown
from controller.policy.units import format_share


def infeasible(policy: Policy, case: Case) -> Iterator[Problem]:
    """Tenants and rules under which the request's promises cannot be kept, whatever its labels."""
    document = read_document(policy.text, "")
    for path, granted in _grants(policy):
        prospect = case.prospect(granted)
        if not prospect.keeps_promise:
            beside = f"{case.input_tokens} input tokens beside {case.running} other requests"
            told = f"{granted.rule}: the promise does not hold for {beside}: {_why(prospect, case)}"
            yield Problem(document.mark(path), f"{told}; {_where_it_holds(granted, case)}")


def _grants(policy: Policy) -> Iterator[tuple[Path, TenantPolicy]]:
    for index, tenant in enumerate(policy.tenants.values()):
        yield ("tenants", index), tenant
        for number, rule in enumerate(tenant.rules):
            yield ("tenants", index, "rules", number), rule.policy


def _why(prospect: Prospect, case: Case) -> str:
    """The promise that breaks first, and what breaks it."""
    times, pace, bounds = prospect.times, prospect.pace, prospect.bounds
    at = f"at {format_share(prospect.level.share)}"
    if pace.start_s > times.first_token_s:
        promised = shown(times.first_token_s)
        return f"the first token comes after {shown(pace.start_s)} {at}, promised is {promised}"
    if pace.step_s > times.per_token_s:
        return f"a token takes {shown(pace.step_s)} {at}, promised is {shown(times.per_token_s)}"
    answer = f"an answer of {pace.answer_tokens} tokens"
    if bounds.may_skip and bounds.floor == 0:
        if pace.start_s > times.first_answer_token_s:
            begin, promised = shown(pace.start_s), shown(times.first_answer_token_s)
            return f"without thinking the answer begins after {begin} {at}, promised is {promised}"
        takes, promised = shown(pace.no_think_s()), shown(times.deadline_s)
        return f"without thinking {answer} takes {takes} {at}, promised is {promised}"
    needed = max(1, bounds.least, bounds.floor)
    what = f"{needed} reasoning tokens"
    if needed == bounds.floor:
        what += f" for the quality floor of {prospect.tenant.quality.floor:g}"
    elif needed == bounds.least:
        what += ", the least that budget.min allows,"
    if needed > bounds.most:
        return f"{what} and {answer} do not fit into a sequence of {case.worker.max_sequence_tokens} tokens"
    reasoning = needed + prospect.tenant.budget.grace.tokens(needed)
    end_s = pace.think_s(min(reasoning, pace.reasoning_tokens))
    if end_s + pace.step_s > times.deadline_s:
        return f"{what} and {answer} take {shown(end_s)} {at}, promised is {shown(times.deadline_s)}"
    begin_s = end_s - (pace.answer_tokens - 1) * pace.step_s
    promised = shown(min(times.first_answer_token_s, times.deadline_s))
    return f"after {what} the answer begins at {shown(begin_s)} {at}, promised is {promised}"


def _where_it_holds(granted: TenantPolicy, case: Case) -> str:
    """The most that may run beside it for the promise to hold."""

    def breaks(running: int) -> bool:
        return not replace(case, running=running).prospect(granted).keeps_promise

    least = bisect_left(range(case.running), True, key=breaks)
    if least == 0:
        return "nor does it on an idle worker" if case.running else "nothing else runs there"
    return f"beside at most {least - 1} it does"
