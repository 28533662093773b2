"""Workers that are kept from new requests for a while since they do worse than the others. Pure state."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from controller.fleet.worker import Worker

FAILURES = 3
"""Losses and internal errors in a row, with no answer between them."""
SLOW = 3.0
"""Times the others' median, of a step's time and of that over the one that the worker measured at its start:
slower hardware is slower than others, but not than itself; one that measured in a quiet moment the other way
round.
"""
LEAST_OTHERS = 2
"""For that to be told."""
FIRST_S = 10.0
LONGEST_S = 300.0
FORGIVEN_S = 60.0
"""Of good behaviour after an ejection, for the next to be shorter by one step."""
MOST_SHARE = 0.3
"""Of the fleet, ejected at once; one may always be, if another is left."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    ejections: int = 0
    since_s: float = 0.0
    """When `ejections` changed last, or the last ejection ended."""


class Outliers:
    """Ejects outliers, and lets them back after `FIRST_S` for each time that they were ejected.

    The terms are those of Envoy's outlier detection: consecutive failures, base and maximal ejection time,
    maximal ejection percentage.
    """

    def __init__(self, changed: Callable[[Worker], None]) -> None:
        """changed: called with each worker that is ejected or let back."""
        self._changed = changed
        self._records: dict[Worker, _Record] = {}

    def add(self, worker: Worker) -> None:
        """Begins to watch a worker."""
        self._records[worker] = _Record()

    def remove(self, worker: Worker) -> None:
        """Watches it no more."""
        self._records.pop(worker, None)

    def answered(self, worker: Worker) -> None:
        """It completed a request."""
        record = self._records.get(worker)
        if record is not None:
            record.failures = 0

    def failed(self, worker: Worker, now_s: float) -> None:
        """It was lost under a request, or failed it. Requests that are lost together count once."""
        record = self._records.get(worker)
        if record is None:
            return
        record.failures += 1
        if record.failures >= FAILURES and worker.ejected_until_s is None:
            self._eject(worker, record, now_s)

    def review(self, now_s: float) -> None:
        """To be called every second or so: lets back those whose time is over, and looks for slow ones."""
        for worker, record in self._records.items():
            if worker.ejected_until_s is not None:
                if now_s >= worker.ejected_until_s:
                    worker.ejected_until_s, worker.came_s = None, now_s
                    record.failures, record.since_s = 0, now_s
                    self._changed(worker)
            elif record.ejections and now_s >= record.since_s + FORGIVEN_S:
                record.ejections, record.since_s = record.ejections - 1, now_s
        self._look_for_slow(now_s)

    def _look_for_slow(self, now_s: float) -> None:
        paces = {worker: worker.pace for worker in self._records if worker.available and worker.pace}
        if len(paces) <= LEAST_OTHERS:
            return
        worst = max(paces, key=paces.__getitem__)
        others = [worker for worker in paces if worker is not worst]
        pace = statistics.median(paces[worker] for worker in others)
        step_s = statistics.median(worker.lone_step_s for worker in others)
        if paces[worst] > SLOW * pace and worst.lone_step_s > SLOW * step_s:
            self._eject(worst, self._records[worst], now_s)

    def _eject(self, worker: Worker, record: _Record, now_s: float) -> None:
        known = [each for each in self._records if each.described and each.member is not None]
        ejected = sum(each.ejected_until_s is not None for each in known)
        if ejected >= max(1, int(MOST_SHARE * len(known))):
            return
        if not any(each.available for each in known if each is not worker):
            return
        record.ejections += 1
        worker.ejected_until_s = now_s + min(LONGEST_S, FIRST_S * record.ejections)
        self._changed(worker)
