"""The metrics endpoint: what a service reads of itself, in the formats of Prometheus."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from curfew.telemetry.metric import Histogram, Kind, Metric, Read, Reading

READ_TIMEOUT_S = 5.0
"""A scrape that the service does not answer within so long fails: its event loop stands still."""


@asynccontextmanager
async def serve_metrics(address: str, read: Read) -> AsyncIterator[str]:
    """Serves at http://ADDRESS/metrics until the end; port 0 picks a free one. Gives the bound address.

    What Prometheus asks for as OpenMetrics has exemplars, whose `trace_id` leads to a trace. Raises OSError
    when the address cannot be had.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_InLoop(read, asyncio.get_running_loop()))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    server, thread = start_http_server(int(port), host.strip("[]"), registry)
    try:
        yield f"{host}:{server.server_port}"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


class _InLoop(Collector):
    """Reads in the service's event loop, where what is read does not change meanwhile, and writes in the
    thread of the scrape.
    """

    def __init__(self, read: Read, loop: asyncio.AbstractEventLoop) -> None:
        self._read, self._loop = read, loop

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        async def read() -> list[Reading]:
            return list(self._read())

        readings = asyncio.run_coroutine_threadsafe(read(), self._loop).result(READ_TIMEOUT_S)
        by_metric: dict[Metric, list[Reading]] = {}
        for reading in readings:
            by_metric.setdefault(reading.metric, []).append(reading)
        return (_family(metric, of_it) for metric, of_it in by_metric.items())


def _family(metric: Metric, readings: Iterable[Reading]) -> Family:
    if metric.kind is Kind.HISTOGRAM:
        histograms = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for reading in readings:
            assert isinstance(reading.value, Histogram)
            histograms.add_metric(reading.labels, _buckets(reading.value), reading.value.sum)
        return histograms
    family_of = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = family_of(metric.name, metric.help, labels=metric.labels)
    for reading in readings:
        assert not isinstance(reading.value, Histogram)
        family.add_metric(reading.labels, reading.value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for bound, count, exemplar in histogram.cumulative():
        upper = "+Inf" if math.isinf(bound) else repr(bound)
        if exemplar is None:
            buckets.append((upper, count))
        else:
            trace_id, value = exemplar
            buckets.append((upper, count, Exemplar({"trace_id": trace_id}, value)))
    return buckets
