"""Whose a trace's requests are: tenants of a trace become tenants of a policy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

from controller.policy.schema import did_you_mean
from controller.simulation.trace import Arrival


class MappingError(Exception):
    """A tenant of the trace has no place in the policy; the message tells which."""


@dataclass(frozen=True, slots=True)
class Share:
    """Requests of those tenants of a trace that match a pattern (`client-*`) go to tenants of the policy, by
    shares.
    """

    pattern: str
    tenants: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Share:
        """`client-*=support`, or `*=support:3,analyst:1` by shares. Raises ValueError."""
        pattern, equals, targets = text.partition("=")
        if not (pattern and equals and targets):
            raise ValueError(f"{text!r} is not PATTERN=TENANT or PATTERN=TENANT:SHARE,TENANT:SHARE")
        tenants, shares = [], []
        for target in targets.split(","):
            tenant, colon, share = target.rpartition(":")
            if not colon:
                tenant, share = share, "1"
            try:
                shares.append(float(share))
            except ValueError:
                shares.append(-1.0)
            if not tenant or not 0 < shares[-1] < float("inf"):
                raise ValueError(f"{text!r}: {target!r} is not TENANT or TENANT:SHARE with a share above 0")
            tenants.append(tenant)
        return cls(pattern, tuple(tenants), tuple(shares))

    def tenant(self, number: float) -> str:
        """That of a number in [0, 1)."""
        bounds = list(accumulate(self.shares))
        return self.tenants[bisect_right(bounds, number * bounds[-1])]


def mapped(
    mappings: Sequence[Share], traced: Collection[str], known: Collection[str], policy: str
) -> Callable[[Arrival, float], str]:
    """Tells the policy's tenant for an arrival and a number in [0, 1): by the first mapping whose pattern
    matches, else the one of the same name. Raises MappingError for what names no tenant of the policy.
    """
    for mapping in mappings:
        for tenant in mapping.tenants:
            if tenant not in known:
                raise MappingError(f"{policy}: {tenant!r} is not a tenant{did_you_mean(tenant, known)}")
    chosen: dict[str, Share] = {}
    for name in traced:
        found = next((mapping for mapping in mappings if fnmatchcase(name, mapping.pattern)), None)
        if found is None and name not in known:
            tenants = ", ".join(list(known)[:4])
            raise MappingError(
                f"{policy}: {name!r} of the trace is not a tenant{did_you_mean(name, known)}; "
                f"say whose its requests are, such as --map '{name}=TENANT' or --map '*=TENANT' "
                f"(the policy has {tenants})"
            )
        chosen[name] = found or Share(name, (name,), (1.0,))
    return lambda arrival, number: chosen[arrival.tenant].tenant(number)
