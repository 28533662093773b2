"""Traces as Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given

from controller.simulation import parquet
from controller.simulation.trace import Arrival, TraceError, read_trace, write_trace
from tests.controller.simulation.test_trace import arrivals as any_arrivals


@given(arrival=any_arrivals)
def test_what_is_written_as_parquet_reads_as_it_does_from_csv(
    arrival: Arrival, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("trace") / "trace.csv"
    source.write_text("".join(write_trace([arrival])), encoding="utf-8", newline="")
    target = source.with_suffix(".parquet")
    parquet.from_csv(source, target)
    assert read_trace(target).arrivals == read_trace(source).arrivals


def test_the_columns_have_types(tmp_path: Path) -> None:
    source, target = tmp_path / "trace.csv", tmp_path / "trace.parquet"
    source.write_text("".join(write_trace([Arrival(0.5, "a", 10, 20, 3, kept=True)])))
    parquet.from_csv(source, target)
    (row,) = pyarrow.parquet.read_table(target).to_pylist()
    assert (row["arrival_s"], row["input_tokens"], row["kept"], row["right"]) == (0.5, 10, True, None)


def test_whole_numbers_in_a_column_of_others_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "trace.parquet"
    columns = {"arrival_s": [1.0], "tenant": ["a"], "input_tokens": [3.0], "reasoning_tokens": [4.0]}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "answer_tokens": [5.0]}), file)
    assert read_trace(file).arrivals == (Arrival(1.0, "a", 3, 4, 5),)


def test_what_is_wrong_is_told_with_file_and_row(tmp_path: Path) -> None:
    file = tmp_path / "trace.parquet"
    columns = {
        "arrival_s": [1.0, 2.0],
        "tenant": ["a", "b"],
        "input_tokens": [3, -4],
        "reasoning_tokens": [4, 4],
    }
    pyarrow.parquet.write_table(pyarrow.table({**columns, "answer_tokens": [5, 5]}), file)
    with pytest.raises(TraceError, match=f"{file}:3: input_tokens: '-4' is not a whole number"):
        read_trace(file)
    file.write_text("arrival_s,tenant\n")
    with pytest.raises(TraceError, match=f"{file}: cannot be read: "):
        read_trace(file)
    with pytest.raises(TraceError, match=r"none\.parquet: cannot be read: "):
        read_trace(tmp_path / "none.parquet")


def test_without_the_library_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TraceError, match=r"cannot be read: needs pyarrow: pip install 'curfew\[parquet\]'"):
        read_trace(tmp_path / "trace.parquet")
