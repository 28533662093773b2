"""What a metric is, and what is read of it. Needs no library: who exposes it brings one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How a metric behaves. A counter only rises, until its process ends."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A name that a service emits.

    name: as Prometheus has it, with its unit; that of a counter ends in `_total`. labels: their names, of
    which none has values that callers choose. buckets: upper bounds of a histogram's, rising; the last, +Inf,
    goes without saying.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def at(self, value: float | Histogram, *labels: str) -> Reading:
        """What it is now where its labels have these values, in their order."""
        return Reading(self, labels, value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric's value at one moment. labels: values, in the order of the metric's."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Histogram


Read = Callable[[], Iterable[Reading]]
"""Reads what a service has to tell now. To be called in its event loop, and must not wait."""


class Histogram:
    """Counts values by bucket. Remembers for each the trace of the last value that has one."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """bounds: the upper ones, rising, without +Inf."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[tuple[str, float] | None] = [None] * (len(bounds) + 1)
        self._sum = 0.0

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum

    def observe(self, value: float, trace_id: str = "") -> None:
        """Counts a value. trace_id: of the request that it is of; empty without a trace."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if trace_id:
            self._exemplars[bucket] = (trace_id, value)

    def copy(self) -> Histogram:
        """What it is now."""
        copied = Histogram(self._bounds)
        copied._counts, copied._exemplars = self._counts.copy(), self._exemplars.copy()
        copied._sum = self._sum
        return copied

    def cumulative(self) -> Iterator[tuple[float, int, tuple[str, float] | None]]:
        """Each bucket's upper bound, how many values are at most that, and its exemplar: trace and value."""
        total = 0
        for bound, count, exemplar in zip(
            (*self._bounds, float("inf")), self._counts, self._exemplars, strict=True
        ):
            total += count
            yield bound, total, exemplar


class Histograms:
    """A metric's histograms by label values, those of which were seen."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._by_labels: dict[tuple[str, ...], Histogram] = {}

    def observe(self, labels: tuple[str, ...], value: float, trace_id: str = "") -> None:
        """Counts a value where the labels have these values."""
        histogram = self._by_labels.get(labels)
        if histogram is None:
            histogram = self._by_labels[labels] = Histogram(self._metric.buckets)
        histogram.observe(value, trace_id)

    def read(self) -> Iterator[Reading]:
        """Copies of all."""
        return (self._metric.at(each.copy(), *labels) for labels, each in self._by_labels.items())


class Counts:
    """A metric's counts by label values, those of which were seen."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._by_labels: dict[tuple[str, ...], float] = {}

    def add(self, by: float, *labels: str) -> None:
        """Adds where the labels have these values."""
        self._by_labels[labels] = self._by_labels.get(labels, 0) + by

    def read(self) -> Iterator[Reading]:
        """All of them."""
        return (self._metric.at(count, *labels) for labels, count in self._by_labels.items())
