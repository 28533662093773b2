"""Which tenants have metrics of their own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from controller.policy import LivePolicy, Policy, TenantPolicy

OTHER = "other"


class NamedTenants:
    """The first of the policy in force. All others are `other`, so that no policy makes more series than the
    monitoring bears.
    """

    def __init__(self, policy: LivePolicy, most: int) -> None:
        self._policy, self._most = policy, most
        self._of: Policy | None = None
        self._named: Mapping[str, TenantPolicy] = {}

    @property
    def all(self) -> Mapping[str, TenantPolicy]:
        """By name."""
        policy = self._policy.current
        if policy is not self._of:
            self._named = dict(itertools.islice(policy.tenants.items(), self._most))
            self._of = policy
        return self._named

    def label(self, tenant: str) -> str:
        """What stands for a tenant."""
        return tenant if tenant in self.all else OTHER
