"""What one policy does otherwise than another: for whom, in effect and not in text.

A request is under one rule of the first policy, or none, and under one or none of the second; what becomes of
it depends on this pair alone. The pairs that can occur are therefore all that there is to compare, and each
occurs for a request that carries the labels of its two rules and no others: any further label could only make
more rules match.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from controller.policy.model import Grace, Policy, Probe, Rule, TenantPolicy
from controller.policy.quality import QualityCurve
from controller.policy.units import format_duration, format_rate, format_share

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What changes for some of a tenant's requests. requests: for which, in words. effects: in words."""

    tenant: str
    requests: str
    effects: tuple[str, ...]


def differences(before: Policy, after: Policy) -> list[Change]:
    """All changes, tenants in the order of the first file and then of the second."""
    changes: list[Change] = []
    for name in dict.fromkeys([*before.tenants, *after.tenants]):
        old, new = before.tenants.get(name), after.tenants.get(name)
        if new is None:
            changes.append(Change(name, "all requests", ("removed: its keys are no longer known",)))
        elif old is None:
            settings = tuple(f"{what}: {value}" for what, value in _settings(new).items() if value != _NONE)
            changes.append(Change(name, "all requests", ("added", *settings)))
            changes += [_added_rule(new, rule) for rule in new.rules]
        else:
            changes += _tenant_changes(old, new)
            changes += _key_changes(name, before, after)
    return changes


def as_text(changes: list[Change]) -> str:
    """The changes by tenant; a sentence when there are none."""
    if not changes:
        return "no difference in effect\n"
    lines: list[str] = []
    for tenant, group in itertools.groupby(changes, key=lambda change: change.tenant):
        lines.append(tenant)
        for change in group:
            lines.append(f"  {change.requests}")
            lines += [f"    {effect}" for effect in change.effects]
    return "".join(f"{line}\n" for line in lines)


def _tenant_changes(old: TenantPolicy, new: TenantPolicy) -> Iterator[Change]:
    for first, second in itertools.product((None, *old.rules), (None, *new.rules)):
        was, becomes = first.policy if first else old, second.policy if second else new
        before, after = _settings(was), _settings(becomes)
        effects = tuple(
            f"{what}: {before[what]} → {after[what]}" for what in before if before[what] != after[what]
        )
        if not effects:
            continue
        # Only requests that really come to this pair: an earlier rule may take some, or all.
        requests = [
            labels
            for labels in _common(first, second)
            if old.for_labels(dict(labels)) is was and new.for_labels(dict(labels)) is becomes
        ]
        if requests:
            yield Change(new.name, _in_words(requests, bool(old.rules or new.rules)), effects)


def _common(*rules: Rule | None) -> list[Labels]:
    """The label sets that just satisfy all rules; none when they contradict each other."""
    allowed: dict[str, list[str]] = {}
    for rule in rules:
        for label, values in rule.match.items() if rule else ():
            allowed[label] = [value for value in values if value in allowed.get(label, values)]
    pairs = [[(label, value) for value in dict.fromkeys(values)] for label, values in sorted(allowed.items())]
    return list(itertools.product(*pairs))


def _in_words(requests: list[Labels], has_rules: bool) -> str:
    if requests == [()]:
        return "requests under no other rule" if has_rules else "all requests"
    return "requests with " + " or ".join(_labels(labels) for labels in requests)


def _labels(labels: Labels) -> str:
    return ", ".join(f"{label}={value}" for label, value in labels)


def _added_rule(tenant: TenantPolicy, rule: Rule) -> Change:
    """What a rule of an added tenant makes different from its other requests."""
    general, special = _settings(tenant), _settings(rule.policy)
    effects = tuple(f"{what}: {value}" for what, value in special.items() if value != general[what])
    return Change(tenant.name, _in_words(_common(rule), True), effects or ("as the others",))


def _key_changes(name: str, before: Policy, after: Policy) -> Iterator[Change]:
    """Keys that the files themselves hold; those in the environment are not looked at."""
    old, new = _digests(name, before), _digests(name, after)
    effects = []
    if new - old:
        effects.append(f"API keys added: {len(new - old)}")
    if old - new:
        effects.append(f"API keys no longer known: {len(old - new)}")
    if effects:
        yield Change(name, "callers", tuple(effects))


def _digests(name: str, policy: Policy) -> set[bytes]:
    return {digest for digest, tenant in policy.keys.values() if tenant.name == name}


_NONE = "none"


def _settings(policy: TenantPolicy) -> Mapping[str, str]:
    """Everything that decides over a request, in words."""
    objectives, budget, quality = policy.objectives, policy.budget, policy.quality
    limits = policy.limits
    return {
        "deadline": _time(objectives.deadline_s),
        "first token": _time(objectives.first_token_s),
        "first answer token": _time(objectives.first_answer_token_s),
        "per token": _time(objectives.per_token_s),
        "share that must keep them": format_share(objectives.share),
        "mode": policy.mode.value,
        "thinks at least": f"{budget.min_tokens} tokens",
        "thinks at most": f"{budget.max_tokens} tokens",
        "grace": _grace(budget.grace),
        "answer reserve": "learnt" if budget.answer_tokens is None else f"{budget.answer_tokens} tokens",
        "quality floor": f"{quality.floor:g}, {quality.floor_budget} tokens" if quality.floor else _NONE,
        "quality by tokens": _curve(quality.curve),
        "learns quality from": "reported outcomes" if quality.learn else _NONE,
        "weight": f"{policy.weight:g}",
        "priority": str(policy.priority),
        "when nothing fits": policy.otherwise.value,
        "brownout": policy.brownout.value,
        "goes to a second worker after": _time(policy.hedge_s),
        "probes": _NONE if policy.probe is None else format_probe(policy.probe),
        "requests at most": f"{format_rate(limits.rate)}, {limits.burst} at once" if limits.rate else _NONE,
        "tokens at most": format_rate(limits.tokens) if limits.tokens else _NONE,
        "requests at once": _NONE if limits.concurrency is None else str(limits.concurrency),
    }


def format_probe(probe: Probe) -> str:
    """Such as `at 64 tokens, then every 32; 2 equal answers of 16 tokens end the reasoning`."""
    return (
        f"at {probe.first_tokens} tokens, then every {probe.every_tokens}; "
        f"{probe.stable_answers} equal answers of {probe.answer_tokens} tokens end the reasoning"
    )


def _time(seconds: float | None) -> str:
    return _NONE if seconds is None else format_duration(seconds)


def _grace(grace: Grace) -> str:
    return f"{100 * grace.share:.4g}% of the budget" if grace.share else f"{grace.fixed_tokens} tokens"


def _curve(curve: QualityCurve | None) -> str:
    if curve is None:
        return _NONE
    return ", ".join(f"{q:g} at {b}" for b, q in zip(curve.budgets, curve.qualities, strict=True))
