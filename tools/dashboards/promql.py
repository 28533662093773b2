"""The expressions that panels are made of."""

from __future__ import annotations

from curfew.telemetry import controller_metrics as c
from curfew.telemetry.metric import Metric

OVER = "[$__rate_interval]"


def rate(metric: Metric, by: str = "", where: str = "") -> str:
    """Of a counter, each second, added up by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric.name}{_braced(where)}{OVER}))"


def quantile(q: float, metric: Metric, by: str = "", where: str = "") -> str:
    """Of a histogram, as far as its buckets tell."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric.name}_bucket{_braced(where)}{OVER})))"


def mean(metric: Metric, by: str = "", where: str = "") -> str:
    """Of a histogram's values."""
    total, count = (
        f"sum{f' by ({by})' if by else ''} (rate({metric.name}_{part}{_braced(where)}{OVER}))"
        for part in ("sum", "count")
    )
    return f"{total} / {count}"


def top(metric: Metric, by: str = "", where: str = "") -> str:
    """The largest of a gauge's values over the controllers."""
    return f"max{f' by ({by})' if by else ''} ({metric.name}{_braced(where)})"


def answered(by: str = "", where: str = "") -> str:
    """Requests answered each second."""
    return rate(c.REQUESTS, by, ", ".join(filter(None, ('outcome="answered"', where))))


def _braced(where: str) -> str:
    return f"{{{where}}}" if where else ""


def attainment(by: str = "", where: str = "") -> str:
    """Of the answered requests, those that kept every objective."""
    return f"{rate(c.KEPT, by, where)} / {answered(by, where)}"
