"""What each tenant is promised and granted: the policy file, checked and resolved into frozen values."""

from controller.policy.document import PolicyError, Problem
from controller.policy.loading import load_policy, parse_policy
from controller.policy.model import (
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Policy,
    Quality,
    TenantPolicy,
)
from controller.policy.quality import QualityCurve

__all__ = [
    "BudgetRange",
    "Grace",
    "ModePolicy",
    "Objectives",
    "Otherwise",
    "Policy",
    "PolicyError",
    "Problem",
    "Quality",
    "QualityCurve",
    "TenantPolicy",
    "load_policy",
    "parse_policy",
]
