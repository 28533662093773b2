"""Traces as Parquet, beside CSV: the same columns, typed. Needs pyarrow, which only this file imports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType

SUFFIX = ".parquet"
MISSING = "needs pyarrow: pip install 'curfew[parquet]'"

NUMBERS = ("arrival_s", "deadline_s", "latency_s", "promised_s", "price")
COUNTS = ("input_tokens", "reasoning_tokens", "answer_tokens", "budget_tokens")
TRUTHS = ("kept", "right")
"""Columns of these names are no text."""

_BATCH_ROWS = 10_000


def library() -> ModuleType:
    """pyarrow. Raises ImportError, whose message says how to install it."""
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError:
        raise ImportError(MISSING) from None


def read_rows(path: Path) -> Iterator[list[str]]:
    """The names of the columns, then the rows, as CSV would have them. Raises ImportError, OSError, and
    ValueError when the file is no Parquet.
    """
    file = library().parquet.ParquetFile(path)
    names: list[str] = file.schema_arrow.names
    yield names
    for batch in file.iter_batches(_BATCH_ROWS):
        columns = [[_text(value) for value in column.to_pylist()] for column in batch.columns]
        yield from map(list, zip(*columns, strict=True))


def from_csv(source: Path, target: Path) -> None:
    """Writes a recording's CSV, which has a header, as Parquet. Raises ImportError, OSError."""
    arrow = library()
    with source.open(encoding="utf-8", newline="") as text:
        rows = csv.reader(text)
        schema = arrow.schema([(name, _type(arrow, name)) for name in next(rows)])
        with arrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            while batch := list(islice(rows, _BATCH_ROWS)):
                named = zip(schema.names, zip(*batch, strict=True), strict=True)
                columns = [[_value(name, cell) for cell in column] for name, column in named]
                writer.write_batch(arrow.record_batch(columns, schema=schema))


def _type(arrow: ModuleType, name: str) -> object:
    if name in NUMBERS:
        return arrow.float64()
    if name in COUNTS:
        return arrow.int64()
    return arrow.bool_() if name in TRUTHS else arrow.string()


def _value(name: str, cell: str) -> float | int | bool | str | None:
    if not cell:
        return None
    if name in NUMBERS:
        return float(cell)
    if name in COUNTS:
        return int(cell)
    return cell == "true" if name in TRUTHS else cell


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    # Other writers have no whole numbers in a column in which one is missing.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
