"""Records traffic without content, in the forms that `curfew policy simulate` reads.

One row a request, when it is over: `controller.simulation.trace.COLUMNS`, and beside them what was decided
(`PLAN_COLUMNS`), which that reader leaves alone. Times count from the recording's start, through all of its
files.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from controller.simulation import parquet
from controller.simulation.trace import COLUMNS, Arrival

log = logging.getLogger(__name__)

PLAN_COLUMNS = ("arrived_at", "rule", "policy", "worker", "plan_mode", "budget_tokens", "promised_s", "price")
"""arrived_at: UTC. rule, policy: where it stands in the policy, and the policy's version. worker: where it
ran. plan_mode, budget_tokens, promised_s: the plan's mode, reasoning budget and deadline. price: of a
slot-second.
"""
BUFFERED_ROWS = 20_000
"""Rows that may wait for the disk: some 4 MB. Beyond them requests are not recorded."""
MAX_FILE_BYTES = 64 * 2**20
MAX_FILE_AGE_S = 3600.0
BATCH_S = 0.5
"""Rows are written together that came within so long."""
RETRY_S = 10.0
"""When writing is tried again after it failed."""
UNFINISHED = ".part"
"""At the end of a file's name until it is complete."""


class RecordingFormat(Enum):
    """In what form complete files are left. What is being written is CSV: that holds whole lines always."""

    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Row:
    """A request that is over. receipt_s: by the recorder's clock; `arrival` has the time set from it."""

    receipt_s: float
    arrival: Arrival
    rule: str
    policy: str
    worker: str = ""
    plan_mode: str = ""
    budget_tokens: int | None = None
    promised_s: float | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class RecordingState:
    """How a recording stands. file: that is being written, if one is. lost: requests that are not in any.
    failure: why none is written; empty when all is well.
    """

    directory: Path
    file: Path | None
    written: int
    lost: int
    failure: str


class Recorder:
    """Takes rows without ever waiting and writes them in a thread of its own.

    Files are named by the time of their start and complete once their names end with `.csv`, or `.parquet`;
    until then with `.csv.part`. A new one is begun when one is large or old. When the disk is full, requests
    go unrecorded, which is logged once, and writing is tried again from time to time.
    """

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        form: RecordingFormat = RecordingFormat.CSV,
        buffered_rows: int = BUFFERED_ROWS,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_file_age_s: float = MAX_FILE_AGE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """clock: that of `Row.receipt_s`. wall_clock: seconds since 1970. Raises OSError when no file can be
        created in the directory, ImportError without the library for the form.
        """
        if form is RecordingFormat.PARQUET:
            parquet.library()
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._form = form
        self._clock = clock
        self._wall_clock = wall_clock
        self._began_s = clock()
        self._began_at = wall_clock()
        self._max_file_bytes = max_file_bytes
        self._max_file_age_s = max_file_age_s
        self._retry_s = retry_s
        self._rows: queue.Queue[Row | None] = queue.Queue(buffered_rows)
        self._dropped = 0  # of the event loop's thread; what follows is of the writer's
        self._file: _File | None = self._open()
        self._written = 0
        self._unwritten = 0
        self._failure = ""
        self._failed_s = 0.0
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    @property
    def state(self) -> RecordingState:
        """As of now."""
        file = self._file
        return RecordingState(
            self._directory,
            None if file is None else file.path,
            self._written,
            self._dropped + self._unwritten,
            self._failure,
        )

    def note(self, row: Row) -> None:
        """Records a request. Never waits: without room it is counted as lost."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if self._dropped == 0:
                log.error("recording is slower than the traffic: requests go unrecorded")
            self._dropped += 1

    def close(self, within_s: float = 5.0) -> None:
        """Writes what is left and completes the file; waits so long at most."""
        try:
            self._rows.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)
        if lost := self._dropped + self._unwritten:
            log.error("%d requests were not recorded", lost)

    def _run(self) -> None:
        last = False
        while not last:
            rows, last = self._next_rows()
            if rows:
                self._write(rows)
            if self._file is not None and (last or self._file.is_full(self._clock())):
                self._finish(self._file)

    def _next_rows(self) -> tuple[list[Row], bool]:
        """Those of the next moment, and whether they are the last."""
        rows: list[Row] = []
        until_s = self._clock() + BATCH_S
        while len(rows) < BUFFERED_ROWS:
            try:
                row = self._rows.get(timeout=max(0.0, until_s - self._clock()))
            except queue.Empty:
                break
            if row is None:
                return rows, True
            rows.append(row)
        return rows, False

    def _write(self, rows: list[Row]) -> None:
        now_s = self._clock()
        if self._failure and now_s < self._failed_s + self._retry_s:
            self._unwritten += len(rows)
            return
        try:
            if self._file is None:
                self._file = self._open()
            self._file.append("".join(self._line(row) for row in rows))
        except Exception as error:  # mostly a full disk; whatever it is, this thread goes on
            self._fail(error, len(rows), now_s)
            return
        self._written += len(rows)
        if self._failure:
            log.warning("recording goes on; %d requests were not recorded", self._unwritten)
            self._failure = ""

    def _fail(self, error: Exception, rows: int, now_s: float) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or repr(error)
        if not self._failure:
            log.error("recording to %s fails, requests go unrecorded: %s", self._directory, why)
        self._unwritten += rows
        self._failed_s = now_s
        self._failure = why
        if self._file is not None:
            self._finish(self._file)

    def _finish(self, file: _File) -> None:
        self._file = None
        try:
            complete = file.finish()
        except OSError as error:
            log.error("%s is not complete: %s", file.path, error.strerror)
            return
        if complete is not None and self._form is RecordingFormat.PARQUET:
            self._convert(complete)

    def _convert(self, complete: Path) -> None:
        target = complete.with_suffix(parquet.SUFFIX)
        unfinished = target.with_name(target.name + UNFINISHED)
        try:
            parquet.from_csv(complete, unfinished)
            unfinished.rename(target)
            complete.unlink()
        except Exception as error:  # it stays as it is, and this thread goes on
            log.error("%s does not become Parquet: %r", complete, error)
            unfinished.unlink(missing_ok=True)

    def _open(self) -> _File:
        name = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("requests-%Y%m%dT%H%M%S.%fZ.csv")
        path = self._directory / (name + UNFINISHED)
        return _File(path, self._max_file_bytes, self._clock() + self._max_file_age_s)

    def _line(self, row: Row) -> str:
        since_s = max(0.0, row.receipt_s - self._began_s)
        arrived = datetime.fromtimestamp(self._began_at + since_s, UTC)
        # As precise as it was, whatever a trace writes by itself: nobody's order may change.
        arrival = [f"{since_s:.6f}", *row.arrival.cells()[1:]]
        plan = (
            arrived.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            row.rule,
            row.policy,
            row.worker,
            row.plan_mode,
            "" if row.budget_tokens is None else str(row.budget_tokens),
            "" if row.promised_s is None else f"{row.promised_s:g}",
            "" if row.price is None else f"{row.price:g}",
        )
        return _csv_line([*arrival, *plan])


class _File:
    """One file. Holds whole lines only, whatever happens."""

    def __init__(self, path: Path, max_bytes: int, until_s: float) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._until_s = until_s
        # Without a buffer, so that what was not written is known at once.
        self._raw = path.open("xb", buffering=0)
        self._bytes = 0
        self._header = _csv_line([*COLUMNS, *PLAN_COLUMNS])

    def append(self, lines: str) -> None:
        """Writes lines. Raises OSError, and then none of them is in the file."""
        rest = memoryview((self._header + lines).encode())
        end = self._bytes + len(rest)
        try:
            while rest:
                rest = rest[self._raw.write(rest) :]
        except OSError:
            self._raw.truncate(self._bytes)
            self._raw.seek(self._bytes)
            raise
        self._bytes, self._header = end, ""

    def is_full(self, now_s: float) -> bool:
        """Whether the next row belongs into another; one without any never is."""
        return self._bytes > 0 and (self._bytes >= self._max_bytes or now_s >= self._until_s)

    def finish(self) -> Path | None:
        """Completes it under its final name, which is returned; removes it when it is empty."""
        with self._raw:
            if self._bytes == 0:
                self.path.unlink()
                return None
            os.fsync(self._raw.fileno())
        return self.path.rename(self.path.with_name(self.path.name.removesuffix(UNFINISHED)))


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
