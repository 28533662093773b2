"""What each tenant is promised and granted: the policy file, checked and resolved into frozen values."""

from controller.policy.document import PolicyError, Problem, UnreadableError
from controller.policy.live import LivePolicy, Reloads
from controller.policy.loading import load_policy, parse_policy
from controller.policy.model import (
    Brownout,
    BudgetRange,
    Grace,
    Limits,
    ModePolicy,
    Objectives,
    Otherwise,
    Policy,
    Quality,
    Rule,
    TenantPolicy,
)
from controller.policy.quality import QualityCurve

__all__ = [
    "Brownout",
    "BudgetRange",
    "Grace",
    "Limits",
    "LivePolicy",
    "ModePolicy",
    "Objectives",
    "Otherwise",
    "Policy",
    "PolicyError",
    "Problem",
    "Quality",
    "QualityCurve",
    "Reloads",
    "Rule",
    "TenantPolicy",
    "UnreadableError",
    "load_policy",
    "parse_policy",
]
