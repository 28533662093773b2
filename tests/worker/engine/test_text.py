"""Text of a token stream: whole characters, no tags, stop strings."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.text import AnswerScanner, Tag, TagScanner, TokenText, silent_tokens

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)

pieces_of_tags = st.lists(
    st.sampled_from(
        ["<", "</", "t", "th", "think", "ink", ">", "/", "nk>\n", "<think>", "</think>", "a", " "]
    )
    | st.text(max_size=3),
    max_size=20,
)


def scan(pieces: list[str]) -> tuple[str, list[Tag]]:
    scanner, shown, tags = TagScanner(), "", list[Tag]()
    for text in pieces:
        while text:
            clear, tag, text = scanner.push(text)  # noqa: PLW2901
            shown += clear
            tags += [tag] if tag else []
    return shown + scanner.flush(), tags


def cut(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(i % (len(text) + 1) for i in cuts)})
    return [text[i:j] for i, j in pairwise(at)]


@PROPERTY
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.data())
def test_a_character_is_never_split(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    at = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=20))})
    tokens = [raw[i:j] for i, j in pairwise(at)]
    stream = TokenText(tokens)
    shown = [stream.push(i) for i in range(len(tokens))]
    assert "�" in text or not any("�" in piece for piece in shown)
    assert "".join(shown) == text
    assert stream.flush() == ""


@PROPERTY
@given(
    st.lists(
        st.sampled_from(
            [b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff", b"a", b"\xc3\xa9", b""]
        )
    )
)
def test_bytes_that_are_no_text_read_as_in_one_piece(tokens: list[bytes]) -> None:
    stream = TokenText(tokens)
    shown = "".join(stream.push(i) for i in range(len(tokens)))
    assert shown + stream.flush() == b"".join(tokens).decode(errors="replace")


def test_a_character_under_way_is_known() -> None:
    stream = TokenText(["é".encode()[:1], "é".encode()[1:]])
    assert (stream.push(0), stream.mid_character) == ("", True)
    assert (stream.push(1), stream.mid_character) == ("é", False)


@pytest.mark.parametrize("tag", Tag)
def test_a_tag_is_found_however_it_is_cut(tag: Tag) -> None:
    text = f"a < b{tag.value}\n\nThe"
    for i in range(len(text) + 1):
        for j in range(i, len(text) + 1):
            assert scan([text[:i], text[i:j], text[j:]]) == ("a < b\n\nThe", [tag])


@PROPERTY
@given(pieces_of_tags, st.lists(st.integers(0, 200), max_size=8))
def test_what_is_shown_holds_no_tag_and_does_not_depend_on_the_cut(
    pieces: list[str], cuts: list[int]
) -> None:
    whole = "".join(pieces)
    shown, tags = scan(pieces)
    assert (shown, tags) == scan(cut(whole, cuts)) == scan([whole])
    assert not any(tag.value in shown for tag in Tag)
    assert len(tags) == sum(whole.count(tag.value) for tag in Tag)


def test_text_without_a_beginning_of_a_tag_is_not_held_back() -> None:
    scanner = TagScanner()
    assert scanner.push("x <y </th") == ("x <y ", None, "")
    assert scanner.close_under_way == "</th"
    assert scanner.push("is") == ("</this", None, "")
    assert scanner.close_under_way == ""


def test_the_remains_of_a_tag_around_a_tag_do_not_become_one() -> None:
    assert scan(["<thi", "<think>", "nk>"]) == ("nk>", [Tag.OPEN])


def test_only_a_beginning_of_the_close_counts_as_a_close_under_way() -> None:
    for text, under_way in [("<", "<"), ("</think", "</think"), ("<t", ""), ("a<</", "</"), ("</think>", "")]:
        scanner = TagScanner()
        scanner.push(text)
        assert scanner.close_under_way == under_way


def answer(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner, shown = AnswerScanner(stops), ""
    for piece in pieces:
        text, stopped = scanner.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + scanner.flush(), False


def stopped_by_search(stops: list[str], text: str) -> tuple[str, bool]:
    """What `answer` shall give, by looking at every beginning of the text."""
    text = text.lstrip()
    for end in range(2, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[1:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@PROPERTY
@given(
    st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3),
    st.text("ab \n", max_size=20),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_the_first_complete_stop_string_ends_the_answer(stops: list[str], text: str, cuts: list[int]) -> None:
    assert answer(stops, cut(text, cuts)) == stopped_by_search(stops, text)


def test_a_stop_string_needs_visible_text_before_it() -> None:
    assert answer(["\n\n"], ["\n\n", "42\n", "\nmore"]) == ("42", True)
    assert answer(["42"], [" 42", "!"]) == ("42!", False)
    assert answer(["aa"], ["aaa"]) == ("a", True)


@pytest.mark.parametrize("pieces", [["xabcd"], [*"xabcd"]])
def test_of_several_stop_strings_the_one_complete_first_counts(pieces: list[str]) -> None:
    assert answer(["abcd", "bc"], pieces) == ("xa", True)
    assert answer(["c", "abc"], pieces) == ("x", True)


def test_a_beginning_of_a_stop_string_is_held_back_and_comes_at_the_end() -> None:
    scanner = AnswerScanner(["END"])
    assert scanner.push("the EN") == ("the ", False)
    assert scanner.visible
    assert scanner.flush() == "EN"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        AnswerScanner(["a", ""])


def test_tokens_that_may_show_nothing_are_silent() -> None:
    table = [
        b"a",
        b" ",
        b"\n\n",
        b"",
        b"<b",
        b"nk>",
        b"\xe2\x82",
        b"\x82a",
        b" b",
        "\u3000".encode(),
        b"[special]",
    ]
    assert silent_tokens(table, specials=[10]) == {1, 2, 3, 4, 5, 6, 9, 10}
