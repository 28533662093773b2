"""Where reasoning may be cut, and what is fed there."""

import pytest

from tests.worker.engine.vocabulary import Vocabulary
from worker.engine.closing import Closing, at_boundary, stops_mid_sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        "So.",
        "So. ",
        "A line\n",
        "A line\n  ",
        "Really?",
        "Stop!",
        'He said "no."',
        "(Yes.)",
        "是的。",
        "3. ",
    ],
)
def test_reasoning_may_be_cut_after_a_line_or_a_sentence(text: str) -> None:
    assert at_boundary(text)
    assert not stops_mid_sentence(text)


@pytest.mark.parametrize("text", ["So", "So ", "So,", "A line\nand", "x = 3", "- ", "f(x)", "\n\nWait", "�"])
def test_reasoning_is_not_cut_in_mid_sentence(text: str) -> None:
    assert not at_boundary(text)
    assert stops_mid_sentence(text)


def test_a_point_after_a_digit_may_go_on_as_a_decimal() -> None:
    assert not at_boundary("is 3.")
    assert not stops_mid_sentence("is 3.")


@pytest.mark.parametrize(
    ("text", "fed"),
    [
        ("so it", ".\n</think>\n\n"),
        ("It is.", "\n</think>\n\n"),
        ("It is 3.", "\n</think>\n\n"),
        ("It is.\n", "</think>\n\n"),
        ("so it\n", "</think>\n\n"),
        ("", "</think>\n\n"),
    ],
)
def test_the_closing_text_fits_what_is_written(text: str, fed: str) -> None:
    vocabulary = Vocabulary([b"</think>", b"\n\n"])
    closing = Closing(vocabulary.encode, vocabulary.token_bytes)
    assert vocabulary.decode(closing.end(text)) == fed


def test_a_close_under_way_is_completed() -> None:
    vocabulary = Vocabulary([b"nk>\n\n"])
    closing = Closing(vocabulary.encode, vocabulary.token_bytes)
    tag = "</think>"
    for n in range(len(tag)):
        assert vocabulary.decode(closing.rest(tag[:n])) == tag[n:] + "\n\n"
    assert closing.rest("</thi") == (vocabulary.token("nk>\n\n"),)


def test_the_longest_form_is_known() -> None:
    vocabulary = Vocabulary([b".\n</think>\n\n", b"\n</think>\n\n", b"</think>\n\n"])
    closing = Closing(vocabulary.encode, vocabulary.token_bytes)
    assert closing.end("so it") == (256,)
    assert closing.longest == len(
        "/think>\n\n"
    )  # a `<` completed byte by byte is longer than any whole close


@pytest.mark.parametrize("text", ["", "stop", "</think>\n\nSo", "<think></think>", "</think></think>"])
def test_a_closing_text_must_end_with_its_only_tag(text: str) -> None:
    vocabulary = Vocabulary([])
    with pytest.raises(ValueError, match="closing text"):
        Closing(vocabulary.encode, vocabulary.token_bytes, text)


def test_tokens_must_spell_the_closing_text() -> None:
    vocabulary = Vocabulary([])
    with pytest.raises(ValueError, match="do not spell"):
        Closing(lambda text: [0, *vocabulary.encode(text)], vocabulary.token_bytes)
