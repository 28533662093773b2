"""The text that ends reasoning: where it fits, and which token ids it takes there."""

from collections.abc import Callable, Sequence

from worker.engine.text import Tag

DEFAULT_CLOSING_TEXT = f"\n{Tag.CLOSE.value}\n\n"

_TERMINATORS = ".!?。！？"
_CLOSERS = "\"'”’)]}*_`"  # what may stand between a terminator and the whitespace after it


def stops_mid_sentence(text: str) -> bool:
    """Whether a text that stops here wants a full stop: its last line is not empty and ends no sentence.

    The tail of the text suffices.
    """
    line = text[text.rfind("\n") + 1 :].rstrip()
    return bool(line) and not line.rstrip(_CLOSERS).endswith(tuple(_TERMINATORS))


def at_boundary(text: str) -> bool:
    """Whether a text may be cut here: after a line, after a sentence, or before anything is written.

    A terminator with nothing behind it yet counts as a sentence's end, or a cut would always cost a token
    more, except after a digit, where it may be a decimal point (`3.` of `3.14`). An abbreviation's point
    counts too: it cannot be told from a sentence's end, and a cut there is harmless. The tail of the text
    suffices.
    """
    return not stops_mid_sentence(text) and not (text[-1:] == "." and text[-2:-1].isdigit())


class Closing:
    """Token ids of one closing text in every form in which reasoning may need it.

    Built once per model and closing text, and shared by all sequences. `text` is anything, then `</think>`,
    then only whitespace. `encode` gives the ids of plain text; `token_bytes` is the table of `TokenText`.
    """

    __slots__ = ("_after_line", "_after_sentence", "_mid_sentence", "_rest", "longest")

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        token_bytes: Sequence[bytes],
        text: str = DEFAULT_CLOSING_TEXT,
    ) -> None:
        """Raises ValueError for a text that is not of this form, or that `encode` does not spell."""
        lead, tag, suffix = text.partition(Tag.CLOSE.value)
        if not tag or suffix.strip() or Tag.OPEN.value in lead:
            raise ValueError(
                f"a closing text ends with {Tag.CLOSE.value} and whitespace, its only tag: {text!r}"
            )

        def ids(text: str) -> tuple[int, ...]:
            ids = tuple(encode(text))
            if b"".join(token_bytes[i] for i in ids) != text.encode():
                raise ValueError(f"the tokens {ids} do not spell the closing text {text!r}")
            return ids

        self._mid_sentence = ids("." + text)
        self._after_sentence = ids(text)
        self._after_line = ids(text.removeprefix("\n"))
        self._rest = {tag[:n]: ids(tag[n:] + suffix) for n in range(len(tag))}
        self.longest = max(
            map(len, [self._mid_sentence, self._after_sentence, self._after_line, *self._rest.values()])
        )
        """The most tokens that ending a reasoning may take."""

    def end(self, text: str) -> tuple[int, ...]:
        """What ends a reasoning whose text so far (its tail suffices) holds no beginning of a close."""
        if stops_mid_sentence(text):
            return self._mid_sentence
        return self._after_line if not text or text.endswith("\n") else self._after_sentence

    def rest(self, close_under_way: str) -> tuple[int, ...]:
        """What completes a close of which this proper prefix, possibly empty, is written already."""
        return self._rest[close_under_way]
