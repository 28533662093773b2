"""Reads at each scrape what the worker knows anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from curfew.rpc.durations import seconds
from curfew.telemetry import worker_metrics as metrics
from curfew.telemetry.metric import Reading
from curfew.v1 import worker_pb2
from worker.telemetry.totals import Totals


class WorkerReadings:
    """All metrics of one worker."""

    def __init__(
        self,
        description: worker_pb2.DescribeWorkerResponse,
        load: Callable[[], worker_pb2.WorkerLoad],
        failed: Callable[[], bool],
        totals: Totals,
    ) -> None:
        """load: now, or as it was last known. failed: whether the device has."""
        self._description, self._load, self._failed, self._totals = description, load, failed, totals

    def read(self) -> Iterator[Reading]:
        """How everything stands now."""
        described, load = self._description, self._load()
        yield metrics.INFO.at(1, described.version, described.model, described.device)
        yield metrics.FAILED.at(self._failed())
        yield metrics.SLOTS.at(described.limits.slots)
        yield metrics.FREE_SLOTS.at(load.free_slots)
        yield metrics.PAGES.at(described.limits.pages)
        yield metrics.FREE_PAGES.at(load.free_pages)
        yield metrics.RUNNING.at(load.running)
        yield metrics.WAITING.at(load.waiting)
        yield metrics.BACKLOG.at(load.prefill_backlog_tokens)
        if load.HasField("step"):
            yield metrics.STEP.at(seconds(load.step))
        # Of the last second before the last step, which may have been long ago.
        yield metrics.TOKENS_PER_S.at(load.tokens_per_s if load.running else 0.0)
        yield from self._totals.read()
