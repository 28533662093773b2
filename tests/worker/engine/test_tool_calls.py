"""Calls of tools in a stream of text: read exactly, or reported, and never guessed at."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.engine.generation import CallPiece, MalformedCall
from worker.engine.tool_calls import ToolCallScanner

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
NAMES = frozenset({"add", "now", "é"})
Call = tuple[int, str, str]


def scan(pieces: list[str], most_calls: int = 4) -> tuple[str, list[Call], list[MalformedCall]]:
    """Text, calls that hold, and what is malformed."""
    scanner = ToolCallScanner(NAMES, most_calls)
    found = [piece for text in pieces for piece in scanner.push(text)]
    found += scanner.flush()
    malformed = [piece for piece in found if isinstance(piece, MalformedCall)]
    void = {piece.index for piece in malformed}
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in found:
        if isinstance(piece, CallPiece) and piece.index not in void:
            # The name comes first, and once.
            assert bool(piece.name) is (piece.index not in names)
            names.setdefault(piece.index, piece.name)
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    assert scanner.calls == len(names)
    text = "".join(piece for piece in found if isinstance(piece, str))
    return text, [(index, names[index], arguments[index]) for index in names], malformed


def cut(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(i % (len(text) + 1) for i in cuts)})
    return [text[i:j] for i, j in pairwise(at)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["</TOOLCALL>", "<TOOLCALL>", "<think>", '"}]', "\\", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
arguments = st.builds(
    json.dumps,
    st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
texts = st.text(alphabet="<TOLCA/>x \n", max_size=12).filter(lambda text: "<TOOLCALL>" not in text)
cuts = st.lists(st.integers(0, 10_000), max_size=30)
scraps = st.lists(
    st.sampled_from(
        ["<TOOLCALL>", "</TOOLCALL>", "<TOOL", "CALL>", "[", "]", "{", "}", ",", ":", '"', "\\", " ", "\n",
         '"name"', '"arguments"', '"add"', '"now"', '"sub"', '{"name": "add", "arguments": {}}', "1", "x",
         '{"name": "now", "arguments": {"a": [{}]}}', '{"name": "add", "arguments": {', "<", "é"]
    ),
    max_size=20,
).map("".join)  # fmt: skip


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(sorted(NAMES)), arguments), max_size=4), texts, texts, cuts)
def test_what_was_written_as_calls_is_read_as_such(
    calls: list[tuple[str, str]], before: str, behind: str, at: list[int]
) -> None:
    listed = ", ".join(f'{{"name": {json.dumps(name)}, "arguments": {args}}}' for name, args in calls)
    written = f"{before}<TOOLCALL>[{listed}]</TOOLCALL>{behind}"
    if written.count("<TOOLCALL>[") > 1 or (before + "<TOOLCALL>").index("<TOOLCALL>") != len(before):
        return  # the text's end and the mark's beginning make another mark
    assert scan(cut(written, at)) == (before + behind, [(n, *call) for n, call in enumerate(calls)], [])


@PROPERTY
@given(scraps, cuts)
@example('<TOOLCALL>[{"name": "add", "arguments": {}}, {"name": "add"}]</TOOLCALL>x', [1])
def test_no_cutting_changes_anything_and_nothing_is_lost(text: str, at: list[int]) -> None:
    whole = scan([text])
    assert scan(cut(text, at)) == whole
    assert scan(list(text)) == whole
    shown, calls, malformed = whole
    assert "<TOOLCALL>" in text or (shown, calls, malformed) == (text, [], [])
    indices = sorted([index for index, _, _ in calls] + [call.index for call in malformed])
    assert indices == list(range(len(indices)))
    for _, name, args in calls:
        assert name in NAMES
        assert isinstance(json.loads(args), dict)
    assert all(call.why and call.text in text for call in malformed)


@pytest.mark.parametrize(
    ("written", "wrong", "why"),
    [
        ('[{"name": "sub", "arguments": {}}]', '{"name": "sub", "arguments": {}}', 'of the name "sub"'),
        ('[{"name": 1, "arguments": {}}]', '{"name": 1, "arguments": {}}', "no tool of the name 1"),
        ('[{"name": "add"}]', '{"name": "add"}', "a name and arguments, and nothing else"),
        (
            '[{"name": "add", "arguments": {}, "x": 1}]',
            '{"name": "add", "arguments": {}, "x": 1}',
            "and nothing else",
        ),
        (
            '[{"name": "add", "name": "now", "arguments": {}}]',
            '{"name": "add", "name": "now", "arguments": {}}',
            "and nothing else",
        ),
        ('[{"name": "add", "arguments": [1]}]', '{"name": "add", "arguments": [1]}', "are no object"),
        ('[{"name": "add", "arguments": "{}"}]', '{"name": "add", "arguments": "{}"}', "are no object"),
        (
            '[{"name": "add", "arguments": {1}}]',
            '{"name": "add", "arguments": {1}}',
            "it is no JSON: Expecting property name",
        ),
        (
            '[{"name": "add", "arguments": {"a": NaN}}]',
            '{"name": "add", "arguments": {"a": NaN}}',
            "it is no JSON",
        ),
        (
            '[{"name": "add, "arguments": {}}]\n',
            '{"name": "add, "arguments": {}}]\n',
            "a string of it has a control character",
        ),
        ('[{"name": "add", ', '{"name": "add", ', "it has a < outside of strings"),
        ("add(1)", "add(1)", "a list of calls was expected, not 'a'"),
        ('{"name": "add", "arguments": {}}', '{"name": "add", "arguments": {}}', "a list of calls was"),
        ("[1]", "1]", "a call or the end of the list was expected, not '1'"),
        ('[] "x"', '"x"', "</TOOLCALL> was expected, not '\"'"),
        ("", "", "a list of calls was expected, not '<'"),
    ],
)
def test_what_is_no_call_is_reported_as_it_stands(written: str, wrong: str, why: str) -> None:
    text, calls, (malformed,) = scan(list(f"So <TOOLCALL>{written}</TOOLCALL> it is"))
    assert (text, calls) == ("So  it is", [])
    assert (malformed.index, malformed.text) == (0, wrong)
    assert why in malformed.why


def test_one_malformed_call_does_not_spoil_the_others() -> None:
    good = '{"name": "add", "arguments": {"a": 1}}'
    _, calls, malformed = scan(
        [f'<TOOLCALL>[{good}, {{"name": "sub", "arguments": {{}}}}, {good}]</TOOLCALL>']
    )
    assert calls == [(0, "add", '{"a": 1}'), (2, "add", '{"a": 1}')]
    assert [call.index for call in malformed] == [1]


def test_more_calls_than_are_allowed_are_reported() -> None:
    good = '{"name": "now", "arguments": {}}'
    _, calls, (malformed,) = scan([f"<TOOLCALL>[{good}, {good}]</TOOLCALL>"], most_calls=1)
    assert calls == [(0, "now", "{}")]
    assert malformed == MalformedCall(1, f"{good}]", "no more calls are allowed than 1")


@pytest.mark.parametrize(
    ("written", "wrong", "why"),
    [
        ('[{"name": "add", "arguments": {"a', '{"name": "add", "arguments": {"a', "before the call does"),
        ('[{"name": "add", "arguments": {}}', "", "where a comma or the end of the list was expected"),
        ("[]</TOOL", "</TOOL", "where </TOOLCALL> was expected"),
        ("oh", "oh", "a list of calls was expected, not 'o'"),
    ],
)
def test_a_call_that_the_answer_ends_in_is_reported(written: str, wrong: str, why: str) -> None:
    _, _, (malformed,) = scan([f"<TOOLCALL>{written}"])
    assert malformed.text == wrong
    assert why in malformed.why


def test_a_call_is_told_as_it_comes() -> None:
    scanner = ToolCallScanner(NAMES, 4)
    written = [
        "So <TOOL",
        'CALL>[{"name": "add", "argu',
        'ments": {"numbers"',
        ": [1",
        ", 2]}",
        "}]</TOOLCALL>",
    ]
    assert [list(scanner.push(piece)) for piece in written] == [
        ["So "],
        [],
        [CallPiece(0, "add", '{"numbers"')],
        [CallPiece(0, "", ": [1")],
        [CallPiece(0, "", ", 2]}")],
        [],
    ]


def test_a_call_whose_arguments_come_first_is_told_when_it_is_complete() -> None:
    assert scan(['<TOOLCALL>[{"arguments": {"a": {}}, "name": "add"}]</TOOLCALL>']) == (
        "",
        [(0, "add", '{"a": {}}')],
        [],
    )


def test_only_what_may_become_a_call_is_held_back() -> None:
    scanner = ToolCallScanner(NAMES, 4)
    assert list(scanner.push("a <TOOL")) == ["a "]
    assert list(scanner.push("S> <b><")) == ["<TOOLS> <b>"]
    assert not scanner.begun
    assert list(scanner.flush()) == ["<"]


def test_without_tools_nothing_is_a_call() -> None:
    scanner = ToolCallScanner(frozenset(), 0)
    assert list(scanner.push("<TOOLCALL>[")) == ["<TOOLCALL>["]
    assert not scanner.begun
