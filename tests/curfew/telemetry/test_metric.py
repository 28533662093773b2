"""Counts and distributions, as they are read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curfew.telemetry.controller_metrics import CONTROLLER_METRICS
from curfew.telemetry.metric import Counts, Histogram, Histograms, Kind, Metric
from curfew.telemetry.worker_metrics import WORKER_METRICS

CATALOGUE = [*CONTROLLER_METRICS, *WORKER_METRICS]


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_the_values_up_to_each_bound(values: list[float]) -> None:
    bounds = (1.0, 10.0, 50.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert [count for _, count, _ in histogram.cumulative()] == [
        sum(value <= bound for value in values) for bound in (*bounds, float("inf"))
    ]
    assert histogram.sum == pytest.approx(sum(values))


def test_a_bucket_remembers_the_last_trace() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5, "a")
    histogram.observe(0.6, "b")
    histogram.observe(0.7)
    assert [exemplar for _, _, exemplar in histogram.cumulative()] == [("b", 0.6), None]


def test_what_is_read_does_not_change_any_more() -> None:
    metric = Metric("seconds", Kind.HISTOGRAM, "", ("tenant",), (1.0,))
    histograms = Histograms(metric)
    histograms.observe(("a",), 0.5)
    (reading,) = histograms.read()
    histograms.observe(("a",), 0.5)
    assert isinstance(reading.value, Histogram)
    assert reading.value.sum == 0.5


def test_counts_are_kept_by_their_labels() -> None:
    counts = Counts(Metric("requests_total", Kind.COUNTER, "", ("tenant", "outcome")))
    for tenant in ("a", "b", "a"):
        counts.add(2, tenant, "answered")
    assert {reading.labels: reading.value for reading in counts.read()} == {
        ("a", "answered"): 4,
        ("b", "answered"): 2,
    }


def test_no_two_metrics_share_a_name() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_metrics_are_named_as_prometheus_advises(metric: Metric) -> None:
    assert re.fullmatch(r"(curfew|gen_ai)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
