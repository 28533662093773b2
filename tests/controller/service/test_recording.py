"""Traffic is recorded without content, without waiting, and whatever the disk does."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controller.planning.decision import Mode
from controller.service.recording import Recorder, RecordingFormat, Row
from controller.simulation import parquet
from controller.simulation.trace import Arrival, Outcome, ReasoningEnd, read_trace

RECEIVED_S = 1000.0
WALL_S = 1_800_000_000.25


def row(number: int = 0, **changes: object) -> Row:
    """A request that came so many seconds after the recording began."""
    fields = {
        "arrival_s": 0.0,
        "tenant": f"tenant-{number}",
        "input_tokens": 100 + number,
        "reasoning_tokens": 20,
        "answer_tokens": 5,
        "outcome": Outcome.ANSWERED,
        **changes,
    }
    return Row(RECEIVED_S + number, Arrival(**fields), f"tenants[{number}]", "0123456789ab")  # type: ignore[arg-type]


class Clock:
    """Told by the test; what waits by it does not wait."""

    def __init__(self) -> None:
        self.now_s = RECEIVED_S

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def recorder(directory: Path, **options: float) -> Iterator[Recorder]:
    running = Recorder(directory, Clock(), lambda: WALL_S, **options)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.close()


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_what_is_recorded_reads_as_a_trace(tmp_path: Path) -> None:
    arrival = Arrival(
        arrival_s=0.0,
        tenant="support",
        input_tokens=351,
        reasoning_tokens=222,
        answer_tokens=146,
        reasoning_end=ReasoningEnd.BUDGET,
        labels={"task": "a=b;c%"},
        deadline_s=0.75,
        mode=Mode.THINK,
        outcome=Outcome.ANSWERED,
        latency_s=1.25,
        kept=False,
    )
    with recorder(tmp_path) as running:
        running.note(Row(RECEIVED_S + 2.5, arrival, "tenants[0]", "v", "host:1", "think", 250, 0.8, 0.125))
    (file,) = files(tmp_path)
    (read,) = read_trace(file).arrivals
    assert read == replace(arrival, arrival_s=2.5)
    header, line = file.read_text().splitlines()
    assert header.endswith(",arrived_at,rule,policy,worker,plan_mode,budget_tokens,promised_s,price")
    assert line.endswith(",2027-01-15T08:00:02.750Z,tenants[0],v,host:1,think,250,0.8,0.125")


def test_a_file_is_named_by_its_start_and_complete_once_it_ends_with_csv(tmp_path: Path) -> None:
    with recorder(tmp_path) as running:
        running.note(row())
        (unfinished,) = files(tmp_path)
        assert unfinished.name == "requests-20270115T080000.250000Z.csv.part"
        assert running.state.file == unfinished
    assert [file.name for file in files(tmp_path)] == ["requests-20270115T080000.250000Z.csv"]
    assert (running.state.written, running.state.lost, running.state.failure) == (1, 0, "")


def test_complete_files_can_be_left_as_parquet(tmp_path: Path) -> None:
    running = Recorder(tmp_path, Clock(), lambda: WALL_S, form=RecordingFormat.PARQUET)
    running.note(row(2))
    running.close()
    (file,) = files(tmp_path)
    assert file.name == "requests-20270115T080000.250000Z.parquet"
    (arrival,) = read_trace(file).arrivals
    assert arrival.arrival_s == 2.0


def test_what_does_not_become_parquet_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(parquet, "from_csv", fail)
    running = Recorder(tmp_path, Clock(), lambda: WALL_S, form=RecordingFormat.PARQUET)
    running.note(row())
    running.close()
    assert [file.suffix for file in files(tmp_path)] == [".csv"]
    assert "does not become Parquet: OSError('no room')" in caplog.text


def test_a_recording_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with recorder(tmp_path / "new"):
        pass
    assert files(tmp_path / "new") == []


def test_a_large_file_is_followed_by_another_on_the_same_time(tmp_path: Path) -> None:
    wall_s = iter(range(1_800_000_000, 1_900_000_000))
    running = Recorder(tmp_path, Clock(), lambda: next(wall_s), max_file_bytes=1)
    for number in range(3):
        running.note(row(number))
        wait_until(lambda: len(list(tmp_path.glob("*.csv"))) > number)  # noqa: B023  # called at once
    running.close()
    assert [read_trace(file).arrivals[0].arrival_s for file in files(tmp_path)] == [0.0, 1.0, 2.0]


def test_an_old_file_is_completed_though_nothing_comes(tmp_path: Path) -> None:
    clock = Clock()
    running = Recorder(tmp_path, clock, lambda: WALL_S, max_file_age_s=60.0)
    running.note(row())
    wait_until(lambda: running.state.written == 1)
    assert len(list(tmp_path.glob("*.part"))) == 1
    clock.now_s += 61
    wait_until(lambda: len(list(tmp_path.glob("*.csv"))) == 1)
    assert running.state.file is None
    running.close()


def test_what_comes_faster_than_the_disk_is_counted_and_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    class Slow(Recorder):
        def _next_rows(self) -> tuple[list[Row], bool]:
            gate.wait(10)
            return super()._next_rows()

    running = Slow(tmp_path, Clock(), lambda: WALL_S, buffered_rows=8)
    for number in range(100):
        running.note(row(number))
    lost = running.state.lost
    assert lost == 92
    gate.set()
    running.close()
    (file,) = files(tmp_path)
    assert len(read_trace(file).arrivals) == 8
    assert [r.message for r in caplog.records] == [
        "recording is slower than the traffic: requests go unrecorded",
        "92 requests were not recorded",
    ]


def test_a_full_disk_is_told_once_and_survived(tmp_path: Path) -> None:
    """A limit on the size of files fails writes in their middle, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[0] == f"ERROR recording to {tmp_path} fails, requests go unrecorded: File too large"
    assert told[1].startswith("WARNING recording goes on; ")
    assert told[2].startswith("ERROR ")
    assert len(told) == 3
    written, lost = map(int, done.stdout.split())
    rows = [len(read_trace(file).arrivals) for file in files(tmp_path)]
    assert (len(rows), sum(rows)) == (2, written)
    assert written + lost == 63
    assert lost >= 40


FULL_DISK = """
import logging, resource, sys, time
from pathlib import Path
from controller.service.recording import Recorder
from tests.controller.service.test_recording import row, wait_until

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
running = Recorder(Path(sys.argv[1]), time.monotonic, time.time, retry_s=0.0)
for number in range(20):
    running.note(row(number))
wait_until(lambda: running.state.written == 20)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
in_mid_line = running.state.file.stat().st_size + 50
for again, limit in enumerate((in_mid_line, 10)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for number in range(20):
        running.note(row(number))
    wait_until(lambda: running.state.lost == 20 * (again + 1))
assert running.state.failure == "File too large"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for number in range(3):
    running.note(row(number))
wait_until(lambda: running.state.written == 23)
running.close()
print(running.state.written, running.state.lost)
"""


def test_a_directory_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="exists"):
        Recorder(tmp_path / "file", Clock(), lambda: WALL_S)


def wait_until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """Waits for what another thread does."""
    waiting = threading.Event()
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come about")
