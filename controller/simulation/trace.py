"""Traffic without content: who asked when, how long it was, what came of it. Read from CSV or Parquet.

The five columns of `Arrival` without a default must be there; the others may be missing or empty. A file that
ends with `.gz` is compressed CSV, one that ends with `.parquet` is Parquet. Rows may come in any
order: a controller records a request when it is over.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from controller.planning.decision import Mode
from controller.simulation import parquet

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class ReasoningEnd(Enum):
    """Why reasoning ended. What NATURAL and LOOP ended is known in its whole length."""

    NATURAL = "natural"
    BUDGET = "budget"
    DEADLINE = "deadline"
    LOOP = "loop"
    NONE = "none"
    CANCELLED = "cancelled"
    STABLE = "stable"


class Outcome(Enum):
    """What came of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"  # no plan keeps the promise
    REJECTED = "rejected"  # for load, or for a limit of rate or number
    FAILED = "failed"
    LEFT = "left"  # the caller went away


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, one row. The columns have the names of the fields.

    arrival_s: since the recording's start. input_tokens: of the prompt, exact where it ran, else estimated.
    reasoning_tokens, answer_tokens: that the model spent. reasoning_end: None stands for NATURAL, with which
    `reasoning_tokens` is what the model wanted; after BUDGET, DEADLINE, STABLE and CANCELLED it may have
    wanted more, after NONE it is not known. labels: in a row as `key=value;key=value`, with `%`, `;`, `=` as
    in a URL. deadline_s, mode: the caller's own wishes. latency_s: receipt to end. right: as the caller
    reported it.
    """

    arrival_s: float
    tenant: str
    input_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    reasoning_end: ReasoningEnd | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    deadline_s: float | None = None
    mode: Mode | None = None
    outcome: Outcome | None = None
    latency_s: float | None = None
    kept: bool | None = None
    right: bool | None = None

    @property
    def wants(self) -> tuple[int, bool]:
        """Reasoning tokens that the model is known to want, and whether it is no more than that."""
        end = self.reasoning_end
        return self.reasoning_tokens, end in (None, ReasoningEnd.NATURAL, ReasoningEnd.LOOP)

    def cells(self) -> list[str]:
        """The row, in the order of `COLUMNS`."""
        return [
            f"{self.arrival_s:.6f}",
            self.tenant,
            str(self.input_tokens),
            str(self.reasoning_tokens),
            str(self.answer_tokens),
            _name(self.reasoning_end),
            ";".join(f"{_escaped(key)}={_escaped(value)}" for key, value in self.labels.items()),
            "" if self.deadline_s is None else f"{self.deadline_s:g}",
            _name(self.mode),
            _name(self.outcome),
            "" if self.latency_s is None else f"{self.latency_s:.6f}",
            "" if self.kept is None else _TRUTH[self.kept],
            "" if self.right is None else _TRUTH[self.right],
        ]


REQUIRED = ("arrival_s", "tenant", "input_tokens", "reasoning_tokens", "answer_tokens")
COLUMNS = (
    *REQUIRED, "reasoning_end", "labels", "deadline_s", "mode", "outcome", "latency_s", "kept", "right",
)  # fmt: skip
"""All columns, in the order in which they are written."""

_TRUTH = {True: "true", False: "false"}


class TraceError(Exception):
    """A trace cannot be read; the message tells file, line and value."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in the order of their times. name: of the file."""

    name: str
    arrivals: tuple[Arrival, ...]

    @property
    def duration_s(self) -> float:
        """From the beginning to the last arrival."""
        return self.arrivals[-1].arrival_s if self.arrivals else 0.0

    @property
    def tenants(self) -> list[str]:
        """Names, in the order of their first arrivals."""
        return list(dict.fromkeys(arrival.tenant for arrival in self.arrivals))

    def scaled(self, time: float = 1.0, lengths: float = 1.0) -> Trace:
        """With times of arrival, and all numbers of tokens, multiplied.

        Of a length that was not 0 at least 1 remains.
        """

        def length(tokens: int) -> int:
            return max(1, round(tokens * lengths)) if tokens else 0

        return replace(
            self,
            arrivals=tuple(
                replace(
                    arrival,
                    arrival_s=arrival.arrival_s * time,
                    input_tokens=length(arrival.input_tokens),
                    reasoning_tokens=length(arrival.reasoning_tokens),
                    answer_tokens=length(arrival.answer_tokens),
                )
                for arrival in self.arrivals
            ),
        )

    def between(self, begin_s: float, end_s: float) -> Trace:
        """What arrives in [begin_s, end_s), with times from begin_s."""
        return replace(
            self,
            arrivals=tuple(
                replace(arrival, arrival_s=arrival.arrival_s - begin_s)
                for arrival in self.arrivals
                if begin_s <= arrival.arrival_s < end_s
            ),
        )


def read_trace(path: Path) -> Trace:
    """Reads a file. Raises TraceError for the first thing that is wrong with it."""
    if path.suffix == parquet.SUFFIX:
        return _read_parquet(path)
    try:
        with path.open("rb") as file:
            raw = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                return Trace(path.name, parse_trace(text, str(path)))
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TraceError(f"{path}: cannot be read: {why}") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: cannot be read: byte {error.start} is not UTF-8") from None


def parse_trace(lines: Iterable[str], name: str) -> tuple[Arrival, ...]:
    """Reads lines, the header first; `name` is that of the file in messages. Raises TraceError."""
    rows = csv.reader(lines, strict=True)
    try:
        return _arrivals(((rows.line_num, cells) for cells in rows if cells), name)
    except csv.Error as error:
        raise TraceError(f"{name}:{rows.line_num}: {error}") from None


def _read_parquet(path: Path) -> Trace:
    try:
        return Trace(path.name, _arrivals(enumerate(parquet.read_rows(path), start=1), str(path)))
    except (OSError, ValueError, ImportError) as error:
        raise TraceError(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None


def _arrivals(rows: Iterable[tuple[int, list[str]]], name: str) -> tuple[Arrival, ...]:
    """From numbered rows, of which the first is the header."""
    numbered = iter(rows)
    _, header = next(numbered, (1, []))
    columns = _columns(header, name)
    arrivals = [_arrival(cells, columns, len(header), f"{name}:{number}") for number, cells in numbered]
    if not arrivals:
        raise TraceError(f"{name}: there is no request in it")
    arrivals.sort(key=lambda arrival: arrival.arrival_s)
    return tuple(arrivals)


def write_trace(arrivals: Iterable[Arrival]) -> Iterator[str]:
    """The lines of a file, the header first, each with its end."""
    yield _line(COLUMNS)
    for arrival in arrivals:
        yield _line(arrival.cells())


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _columns(header: list[str], name: str) -> dict[str, int]:
    """Where each column stands. Those that are not known are left alone."""
    where: dict[str, int] = {}
    for index, column in enumerate(cell.strip() for cell in header):
        if column in where:
            raise TraceError(f"{name}:1: column {column!r} is there twice")
        where[column] = index
    missing = [column for column in REQUIRED if column not in where]
    if missing:
        raise TraceError(
            f"{name}:1: missing: {', '.join(missing)}; a trace has at least {','.join(REQUIRED)}"
        )
    return where


def _arrival(cells: list[str], columns: Mapping[str, int], width: int, place: str) -> Arrival:
    if len(cells) != width:
        raise TraceError(f"{place}: {len(cells)} values, but {width} columns")

    def read(column: str, parse: Callable[[str], T]) -> T:
        text = cells[columns[column]].strip()
        try:
            return parse(text)
        except ValueError as error:
            raise TraceError(f"{place}: {column}: {_shown(text)} {error}") from None

    def optional(column: str, parse: Callable[[str], T]) -> T | None:
        index = columns.get(column)
        return None if index is None or not cells[index].strip() else read(column, parse)

    return Arrival(
        arrival_s=read("arrival_s", _seconds),
        tenant=read("tenant", _text),
        input_tokens=read("input_tokens", _tokens),
        reasoning_tokens=read("reasoning_tokens", _tokens),
        answer_tokens=read("answer_tokens", _tokens),
        reasoning_end=optional("reasoning_end", _one_of(ReasoningEnd)),
        labels=optional("labels", _labels) or NO_LABELS,
        deadline_s=optional("deadline_s", _seconds),
        mode=optional("mode", _one_of(Mode)),
        outcome=optional("outcome", _one_of(Outcome)),
        latency_s=optional("latency_s", _seconds),
        kept=optional("kept", _truth),
        right=optional("right", _truth),
    )


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r} …"


def _text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ValueError("is not a number of seconds of at least 0")
    return seconds


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("is not a whole number of at least 0")
    return int(text)


def _one_of(kind: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"is none of {', '.join(str(member.value) for member in kind)}") from None

    return parse


def _truth(text: str) -> bool:
    for truth, name in _TRUTH.items():
        if text.lower() == name:
            return truth
    raise ValueError("is neither true nor false")


def _labels(text: str) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for pair in text.split(";"):
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ValueError("is not of the form key=value;key=value")
        labels[_unescaped(key)] = _unescaped(value)
    return MappingProxyType(labels)


def _name(member: Enum | None) -> str:
    return "" if member is None else str(member.value)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace(";", "%3B").replace("=", "%3D")


def _unescaped(text: str) -> str:
    return text.replace("%3D", "=").replace("%3B", ";").replace("%25", "%")
