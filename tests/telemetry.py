"""What is read of a running service, by name and labels."""

from __future__ import annotations

from collections.abc import Iterable

from curfew.telemetry.metric import Histogram, Metric, Reading


def value(readings: Iterable[Reading], metric: Metric, *labels: str) -> float:
    """The value of a metric where its labels have these values; of a histogram, how many there are."""
    found = [r.value for r in readings if r.metric is metric and r.labels == labels]
    assert len(found) == 1, f"{metric.name} has {len(found)} values for {labels}"
    if isinstance(found[0], Histogram):
        *_, (_, count, _) = found[0].cumulative()
        return count
    return found[0]
