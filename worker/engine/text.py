"""Text of a token stream: bytes to characters, thinking tags, stop strings.

Three small scanners that hold back as little as they must. Each is fed the stream in pieces and gives, over
any cutting of the same stream into pieces, the same concatenated result.
"""

import codecs
import enum
from collections.abc import Collection, Sequence


class Tag(enum.Enum):
    """The two tags around reasoning. They are ordinary text, usually several tokens long."""

    OPEN = "<think>"
    CLOSE = "</think>"


class TokenText:
    """Turns token ids into text of whole characters.

    `token_bytes[i]` is what token `i` stands for in a byte-level vocabulary; special tokens have `b""`, but
    where a model writes a thinking tag as one token, that token has the tag's bytes. The table covers every
    id that can be sampled, padding included. Bytes that are no UTF-8 become U+FFFD, as `bytes.decode(errors=
    "replace")` of the whole stream would have it.
    """

    __slots__ = ("_pending", "_token_bytes")

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._pending = b""

    @property
    def mid_character(self) -> bool:
        """Whether the stream stops inside a character."""
        return bool(self._pending)

    def push(self, token_id: int) -> str:
        """The characters that this token completes. Raises IndexError for an id outside the table."""
        data = self._token_bytes[token_id]
        if not self._pending:
            try:
                return data.decode()
            except UnicodeDecodeError:
                pass
        data = self._pending + data
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        """What is left at the end of the stream: nothing, or U+FFFD for a character cut short."""
        rest, self._pending = self._pending, b""
        return rest.decode(errors="replace")


class TagScanner:
    """Takes the thinking tags out of a stream of text.

    A tail that may still become a tag is held back. Tag prefixes that directly precede a tag (`<thi<think>`)
    are dropped with it: what remains could otherwise join up to a tag that the stream never contained.
    """

    __slots__ = ("_held", "_partial")

    def __init__(self) -> None:
        # _held is a chain of proper tag prefixes at the stream's end; _partial is the last of them, the only
        # one that can still become a tag. Neither is ever empty alone.
        self._held = ""
        self._partial = ""

    @property
    def close_under_way(self) -> str:
        """The proper prefix of `</think>` (at least `<`) with which the stream ends, or an empty string."""
        return self._partial if Tag.CLOSE.value.startswith(self._partial) else ""

    def push(self, text: str) -> tuple[str, Tag | None, str]:
        """Text without tags, up to the first tag; that tag, None if there is none; and the text behind it,
        which is not taken yet.
        """
        if not self._held and "<" not in text:
            return text, None, ""
        chain = self._held[: len(self._held) - len(self._partial)]
        clear, *rest = (self._partial + text).split("<")
        for number, part in enumerate(map("<".__add__, rest), 1):
            tag = next((tag for tag in Tag if part.startswith(tag.value)), None)
            if tag is not None:
                self._held = self._partial = ""
                return clear, tag, "<".join([part[len(tag.value) :], *rest[number:]])
            if any(tag.value.startswith(part) for tag in Tag):
                chain += part
                self._partial = part
            else:
                clear, chain = clear + chain + part, ""
                self._partial = ""
        self._held = chain
        return clear, None, ""

    def flush(self) -> str:
        """The held text, at the end of the stream."""
        held, self._held, self._partial = self._held, "", ""
        return held


class AnswerScanner:
    """Drops the whitespace that an answer begins with, and ends it before its first stop string.

    A stop string needs visible text before it. Of several, the one that is complete first counts (of those
    the longest). A tail that may still become a stop string is held back.
    """

    __slots__ = ("_held", "_stops", "visible")

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string."""
        if not all(stops):
            raise ValueError(f"a stop string must not be empty: {tuple(stops)!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.visible = False
        """The answer has visible text, shown or held back. For reading only."""

    def push(self, text: str) -> tuple[str, bool]:
        """(text to show, whether a stop string ended the answer)."""
        start = 0
        if not self.visible:
            text = text.lstrip()
            self.visible = bool(text)
            start = 1
        if not text or not self._stops:
            return text, False
        text = self._held + text
        found = [(i + len(stop), i) for stop in self._stops if (i := text.find(stop, start)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        cut = min(prefix_start(text, stop, start) for stop in self._stops)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """The held text, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def prefix_start(text: str, stop: str, start: int = 0) -> int:
    """Where the longest tail of `text[start:]` that begins `stop` starts; `len(text)` if none does."""
    i = text.find(stop[0], max(start, len(text) - len(stop) + 1))
    while i >= 0:
        if stop.startswith(text[i:]):
            return i
        i = text.find(stop[0], i + 1)
    return len(text)


def trailing_tokens(token_bytes: Sequence[bytes]) -> dict[str, frozenset[int]]:
    """Ids that complete a `</think>` and go on with visible text, by the part of the tag before them: of an
    answer with a form such text would be its beginning, sampled before the form was in force.
    """
    close = Tag.CLOSE.value.encode()
    may_close = [(token_id, data) for token_id, data in enumerate(token_bytes) if b">" in data]

    def goes_on(data: bytes, rest: bytes) -> bool:
        _, closed, behind = data.partition(close)
        return bool((closed and behind.strip()) or (data.startswith(rest) and data[len(rest) :].strip()))

    return {
        close[:at].decode(): frozenset(token_id for token_id, data in may_close if goes_on(data, close[at:]))
        for at in range(len(close))
    }


def silent_tokens(token_bytes: Sequence[bytes], specials: Collection[int]) -> frozenset[int]:
    """Ids that may leave an answer without visible text: what `Ban.SILENT` keeps from being sampled.

    Special and empty tokens, tokens without one whole non-whitespace character, and tokens with `<` or `>`,
    which may be, or complete, a tag that is dropped. Any other token shows something whatever came before it:
    a whole character cannot be swallowed by bytes before it, and without `>` no held tag prefix completes.
    """
    return frozenset(
        token_id
        for token_id, data in enumerate(token_bytes)
        if token_id in specials or b"<" in data or b">" in data or not data.decode(errors="ignore").strip()
    )
