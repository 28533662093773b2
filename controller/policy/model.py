"""The policy as the rest of the controller sees it: complete, checked, immutable."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from controller.policy.document import Problem
from controller.policy.quality import QualityCurve
from controller.policy.units import Rate


class ModePolicy(Enum):
    """Whether a tenant's requests may reason."""

    AUTO = "auto"
    THINK = "think"
    NO_THINK = "no_think"


class Otherwise(Enum):
    """What to do when no plan can keep the promise."""

    REFUSE = "refuse"
    BEST_EFFORT = "best_effort"


class Brownout(Enum):
    """How far load squeezes a request: not at all, to less thinking than it would get of an idle pool, to
    none, to waiting for a better moment, to being turned away.
    """

    NONE = "none"
    LESS = "less"
    NO_THINK = "no_think"
    QUEUE = "queue"
    REJECT = "reject"

    @property
    def may_wait(self) -> bool:
        """Whether a request that may be squeezed so far may be kept from running at all."""
        return self in (Brownout.QUEUE, Brownout.REJECT)


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a tenant is promised. A time of None is not promised.

    share: of the tenant's requests, how many must keep every time, in (0, 1).
    deadline_s: receipt to the end of the answer.
    first_token_s, first_answer_token_s: receipt to that token.
    per_token_s: mean time between tokens after the first.
    """

    share: float
    deadline_s: float | None = None
    first_token_s: float | None = None
    first_answer_token_s: float | None = None
    per_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Grace:
    """Tokens past the budget in which reasoning may find the end of its sentence: a number, or a share of the
    budget.
    """

    fixed_tokens: int = 0
    share: float = 0.0

    def tokens(self, budget: int) -> int:
        """Grace of a budget."""
        return self.fixed_tokens + math.ceil(self.share * budget - 1e-9)

    def largest_budget(self, cut: int) -> int:
        """The largest budget that, with its grace, is at most `cut` tokens; 0 when none is."""
        budget = max(0, math.floor((cut - self.fixed_tokens) / (1 + self.share)))
        while budget + 1 + self.tokens(budget + 1) <= cut:
            budget += 1
        while budget > 0 and budget + self.tokens(budget) > cut:
            budget -= 1
        return budget


@dataclass(frozen=True, slots=True)
class BudgetRange:
    """What a request's reasoning and answer may use.

    min_tokens: thinking is not started with less.
    max_tokens: most reasoning tokens that a plan grants.
    answer_tokens: kept back for the answer; None lets the planner learn how much that takes.
    """

    min_tokens: int
    max_tokens: int
    grace: Grace
    answer_tokens: int | None


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a tenant's answers are, and must be.

    curve: None when nothing was measured: more thinking is then taken to be better.
    floor_budget: least budget at which the curve reaches the floor; 0 without one. learn: whether outcomes
    that callers report move the curve.
    """

    curve: QualityCurve | None = None
    floor: float = 0.0
    floor_budget: int = 0
    learn: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """When a request that reasons is asked what its answer would be; reasoning ends once that is stable.

    first_tokens, every_tokens: reasoning tokens at the first look, and from one to the next; at least 1.
    stable_answers: equal answers in a row that end the reasoning, at least 2. answer_tokens: of an answer
    that are compared, at least 1.
    """

    first_tokens: int
    every_tokens: int
    stable_answers: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use, however idle the pool is; None sets no limit.

    rate: of requests. burst: requests that may come at once, at least 1. tokens: of tokens, prompt and
    output; as many as come in its time may come at once. concurrency: requests that may wait or run at once,
    at least 1.
    """

    rate: Rate | None = None
    burst: int = 1
    tokens: Rate | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What holds for a tenant's requests, in general or under one of its rules.

    rule: where it stands in the file, such as `tenants[2]` or `tenants[2].rules[0]`. version: of the policy
    that it is from. weight: what its quality is worth beside that of others. priority: 0 to 7, lower runs
    first. brownout: how far load may squeeze them. probe: None takes no looks. hedge_s: without a token after
    which a request goes to a second worker too. limits: of the tenant, under every rule the same. rules:
    exceptions, of which the first that matches applies; a rule has none of its own.
    """

    name: str
    rule: str
    version: str
    objectives: Objectives
    mode: ModePolicy
    budget: BudgetRange
    quality: Quality
    weight: float
    priority: int
    otherwise: Otherwise
    brownout: Brownout = Brownout.REJECT
    probe: Probe | None = None
    hedge_s: float | None = None
    limits: Limits = Limits()
    rules: tuple[Rule, ...] = ()

    def for_labels(self, labels: Mapping[str, str]) -> TenantPolicy:
        """What holds for a request with these labels."""
        return next((rule.policy for rule in self.rules if rule.matches(labels)), self)

    def with_rules(self, rules: Iterable[Rule]) -> TenantPolicy:
        """The same with these rules."""
        return replace(self, rules=tuple(rules))


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds instead for requests that carry every label of `match` with one of its values."""

    match: Mapping[str, tuple[str, ...]]
    policy: TenantPolicy

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a request with these labels falls under it."""
        return all(labels.get(label) in values for label, values in self.match.items())

    def covers(self, other: Rule) -> bool:
        """Whether it matches every request that the other matches."""
        return all(
            label in other.match and set(other.match[label]) <= set(values)
            for label, values in self.match.items()
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file.

    version: first 12 hexadecimal digits of the text's SHA-256.
    tenants: by name, in the file's order.
    keys: tenants by the SHA-256 digest of an API key.
    keyless: names of the tenants that nobody can call, because no key is set for them.
    warnings: what can be used as it stands and is likely not what was meant.
    """

    version: str
    text: str
    tenants: Mapping[str, TenantPolicy]
    keys: Mapping[bytes, tuple[bytes, TenantPolicy]]
    keyless: tuple[str, ...]
    warnings: tuple[Problem, ...] = ()

    def tenant_of(self, key: str) -> TenantPolicy | None:
        """The tenant whose API key this is.

        The table is searched by digest, so the time of a search tells nothing about a key; what it finds is
        compared in constant time all the same.
        """
        digest = hashlib.sha256(key.encode()).digest()
        stored, tenant = self.keys.get(digest, (b"", None))
        return tenant if hmac.compare_digest(stored, digest) else None
