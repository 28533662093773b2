"""The table of a simulation, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from controller.policy.units import format_duration, format_share
from controller.simulation.summary import Summary
from controller.simulation.world import Run

Told = Mapping[str, Mapping[str, Summary]]
"""Summaries by policy, then by tenant."""

KEPT = "kept"
LEGEND = (
    "kept: of all requests, those that kept every promise; what was not served has kept none. quality: "
    "probability that an answer is right. good: of all requests, those right and kept. budget/used: mean "
    "reasoning tokens. whole/cut/no: in per cent, how reasoning ended: by itself, by a limit, not begun."
)
COLUMNS: Sequence[tuple[str, Callable[[Summary], str]]] = (
    ("requests", lambda s: f"{s.requests:,}"),
    (KEPT, lambda s: percent(s.kept)),
    ("target", lambda s: "" if math.isnan(s.target) else format_share(s.target)),
    ("quality", lambda s: percent(s.quality)),
    ("good", lambda s: percent(s.goodput)),
    ("budget/used", lambda s: f"{_tokens(s.budget)}/{_tokens(s.reasoning)}"),
    ("whole/cut/no", lambda s: "/".join(_whole(share) for share in (s.whole, s.cut, s.no_think))),
    ("unserved", lambda s: percent(s.refused + s.rejected + s.failed)),
    ("p50", lambda s: _seconds(s.p50_s)),
    ("p95", lambda s: _seconds(s.p95_s)),
)


def groups(told: Told, runs: Mapping[str, Run]) -> list[tuple[str, dict[str, Summary]]]:
    """For each tenant, and for all together where there are several, its summaries by policy."""
    tenants = list(dict.fromkeys(tenant for by_tenant in told.values() for tenant in by_tenant))
    found = [
        (tenant, {policy: by_tenant[tenant] for policy, by_tenant in told.items() if tenant in by_tenant})
        for tenant in tenants
    ]
    if len(tenants) > 1:
        found.append(("all", {policy: Summary.of(run.records) for policy, run in runs.items()}))
    return found


def percent(share: float) -> str:
    """A share for people; a dash where there is none."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def _whole(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f}"


def _tokens(tokens: float) -> str:
    return "–" if math.isnan(tokens) else f"{tokens:,.0f}"


def _seconds(seconds: float) -> str:
    return "–" if math.isnan(seconds) else format_duration(seconds)
