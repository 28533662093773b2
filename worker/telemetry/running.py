"""Turns on what a worker's command line asks for."""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from curfew.telemetry.logs import LogFormat
from curfew.telemetry.options import metrics_endpoint, tracing_to
from curfew.v1 import worker_pb2
from worker.telemetry.readings import WorkerReadings
from worker.telemetry.totals import Totals
from worker.telemetry.watch import Watch


@dataclass(frozen=True, slots=True)
class WorkerTelemetry:
    """interceptors: for the worker's server. addresses: for its ready line, empty or with a space before."""

    interceptors: Sequence[grpc.aio.ServerInterceptor]
    addresses: str


@asynccontextmanager
async def worker_telemetry(
    options: argparse.Namespace,
    description: worker_pb2.DescribeWorkerResponse,
    load: Callable[[], worker_pb2.WorkerLoad],
    failed: Callable[[], bool],
) -> AsyncIterator[WorkerTelemetry]:
    """Tells of a worker until the end, as `add_telemetry_options` has it; does nothing if nobody asks.

    load, failed: see `WorkerReadings`. Raises TelemetryError.
    """
    totals = Totals()
    readings = WorkerReadings(description, load, failed, totals)
    async with AsyncExitStack() as at_end:
        tracing = await at_end.enter_async_context(
            tracing_to(options.otlp, "curfew-worker", options.trace_ratio, time.monotonic)
        )
        metrics = await at_end.enter_async_context(metrics_endpoint(options.metrics, readings.read))
        json = LogFormat(options.log_format) is LogFormat.JSON  # whose lines name their requests
        watched = json or tracing is not None or metrics is not None
        yield WorkerTelemetry(
            [Watch(totals, tracing, time.monotonic)] if watched else [],
            "" if metrics is None else f" metrics={metrics}",
        )
