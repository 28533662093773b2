"""Reading and writing traffic without content."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.planning.decision import Mode
from controller.simulation.trace import (
    COLUMNS,
    Arrival,
    Outcome,
    ReasoningEnd,
    Trace,
    TraceError,
    parse_trace,
    read_trace,
    write_trace,
)

HEAD = "arrival_s,tenant,input_tokens,reasoning_tokens,answer_tokens\n"
TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=12)
seconds = st.integers(0, 10**9).map(lambda micros: micros / 1e6)
tokens = st.integers(0, 10**6)
arrivals = st.builds(
    Arrival,
    arrival_s=seconds,
    tenant=texts,
    input_tokens=tokens,
    reasoning_tokens=tokens,
    answer_tokens=tokens,
    reasoning_end=st.none() | st.sampled_from(ReasoningEnd),
    labels=st.dictionaries(texts, texts, max_size=3),
    deadline_s=st.none() | st.integers(1, 3600).map(float),
    mode=st.none() | st.sampled_from(Mode),
    outcome=st.none() | st.sampled_from(Outcome),
    latency_s=st.none() | seconds,
    kept=st.none() | st.booleans(),
    right=st.none() | st.booleans(),
)


def lines(*rows: str, head: str = HEAD) -> list[str]:
    return [head, *(f"{row}\n" for row in rows)]


@given(st.lists(arrivals, min_size=1, max_size=5))
def test_what_is_written_is_read_again(recorded: list[Arrival]) -> None:
    read = parse_trace(write_trace(recorded), "t.csv")
    assert list(read) == sorted(recorded, key=lambda arrival: arrival.arrival_s)


def test_rows_may_come_in_any_order_of_time() -> None:
    read = parse_trace(lines("2,a,1,1,1", "1,b,1,1,1"), "t.csv")
    assert [arrival.tenant for arrival in read] == ["b", "a"]


def test_columns_may_stand_in_any_order_and_others_are_left_alone() -> None:
    head = "answer_tokens,tenant,note,reasoning_tokens,input_tokens,arrival_s\n"
    (read,) = parse_trace(lines("3,a,hello,2,1,0.5", head=head), "t.csv")
    assert read == Arrival(0.5, "a", 1, 2, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,a,1,1,1"], "t.csv:2: arrival_s: 'x' is not a number of seconds of at least 0"),
        (["0,a,1,1,1", "-1,a,1,1,1"], "t.csv:3: arrival_s: '-1' is not a number of seconds of at least 0"),
        (["nan,a,1,1,1"], "t.csv:2: arrival_s: 'nan' is not a number of seconds of at least 0"),
        (["0,,1,1,1"], "t.csv:2: tenant: '' is empty"),
        (["0,a,1.5,1,1"], "t.csv:2: input_tokens: '1.5' is not a whole number of at least 0"),
        (["0,a,1,-1,1"], "t.csv:2: reasoning_tokens: '-1' is not a whole number of at least 0"),
        (["0,a,1,1"], "t.csv:2: 4 values, but 5 columns"),
        ([], "t.csv: there is no request in it"),
    ],
)
def test_errors_tell_file_line_and_value(rows: list[str], message: str) -> None:
    with pytest.raises(TraceError) as error:
        parse_trace(lines(*rows), "t.csv")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (
            "reasoning_end",
            "late",
            "'late' is none of natural, budget, deadline, loop, none, cancelled, stable",
        ),
        ("outcome", "lost", "'lost' is none of answered, refused, rejected, failed, left"),
        ("mode", "maybe", "'maybe' is none of think, no_think"),
        ("labels", "tier", "'tier' is not of the form key=value;key=value"),
        ("kept", "1", "'1' is neither true nor false"),
    ],
)
def test_errors_in_optional_columns_tell_the_value(column: str, cell: str, message: str) -> None:
    head = HEAD.replace("\n", f",{column}\n")
    with pytest.raises(TraceError) as error:
        parse_trace(lines(f"0,a,1,1,1,{cell}", head=head), "t.csv")
    assert str(error.value) == f"t.csv:2: {column}: {message}"


def test_missing_and_doubled_columns_are_named() -> None:
    with pytest.raises(TraceError, match=r"t\.csv:1: missing: input_tokens, answer_tokens; a trace has"):
        parse_trace(["arrival_s,tenant,reasoning_tokens\n"], "t.csv")
    with pytest.raises(TraceError, match=r"t\.csv:1: column 'tenant' is there twice"):
        parse_trace(["tenant,tenant\n"], "t.csv")


@given(st.text(max_size=200))
def test_any_text_is_a_trace_or_a_located_error(text: str) -> None:
    message = "t.csv"
    try:
        parse_trace(text.splitlines(keepends=True), "t.csv")
    except TraceError as error:
        message = str(error)
    assert message.startswith("t.csv")


def test_files_are_read_also_compressed_and_faults_of_files_are_told(tmp_path: Path) -> None:
    text = "".join(write_trace([Arrival(1.0, "a", 1, 2, 3)]))
    plain, packed, broken = (tmp_path / name for name in ("t.csv", "t.csv.gz", "b.csv.gz"))
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    broken.write_bytes(gzip.compress(text.encode())[:-9])
    assert read_trace(plain).arrivals == read_trace(packed).arrivals
    for file in (broken, tmp_path / "none.csv", tmp_path):
        with pytest.raises(TraceError, match=f"{file}: cannot be read: "):
            read_trace(file)


def test_scaling_multiplies_and_never_makes_something_nothing() -> None:
    trace = Trace("t", (Arrival(10.0, "a", 100, 0, 3),)).scaled(time=0.5, lengths=0.1)
    (arrival,) = trace.arrivals
    assert (arrival.arrival_s, arrival.input_tokens) == (5.0, 10)
    assert (arrival.reasoning_tokens, arrival.answer_tokens) == (0, 1)


def test_a_piece_begins_at_its_own_zero() -> None:
    trace = Trace("t", tuple(Arrival(float(s), "a", 1, 1, 1) for s in range(5)))
    assert [arrival.arrival_s for arrival in trace.between(1, 3).arrivals] == [0.0, 1.0]


def test_what_was_cut_is_not_taken_for_all_that_the_model_wanted() -> None:
    def wants(end: ReasoningEnd | None) -> bool:
        return Arrival(0.0, "a", 1, 5, 1, reasoning_end=end).wants[1]

    assert wants(None)
    assert wants(ReasoningEnd.NATURAL)
    assert not wants(ReasoningEnd.BUDGET)
    assert not wants(ReasoningEnd.NONE)


@pytest.mark.parametrize(("name", "rows", "tenants"), [("morning", 7848, 20), ("evening", 12917, 32)])
def test_the_shared_traces_are_whole(name: str, rows: int, tenants: int) -> None:
    trace = read_trace(TRACES / f"reasoning_{name}.csv")
    assert len(trace.arrivals) == rows
    assert len(trace.tenants) == tenants
    assert 1790 < trace.duration_s <= 1800


def test_all_columns_are_fields_in_the_order_of_the_file() -> None:
    assert tuple(Arrival.__dataclass_fields__) == COLUMNS
