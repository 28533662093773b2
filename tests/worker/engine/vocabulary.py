"""A byte-level vocabulary for tests: every byte is a token, and so are some longer pieces."""

from collections.abc import Iterable

from worker.engine.budget import TextFormat
from worker.engine.closing import DEFAULT_CLOSING_TEXT, Closing


class Vocabulary:
    """Ids 0 to 255 are the bytes, then come the pieces, then end of text."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.token_bytes = [*(bytes([byte]) for byte in range(256)), *pieces, b""]
        self.end_of_text = len(self.token_bytes) - 1
        self._ids = {data: i for i, data in enumerate(self.token_bytes[:-1])}
        self._longest = max(map(len, self.token_bytes))

    def token(self, piece: str) -> int:
        """The one token of this text."""
        return self._ids[piece.encode()]

    def encode(self, text: str) -> list[int]:
        """Longest match first."""
        data, ids = text.encode(), []
        while data:
            n = next(n for n in range(self._longest, 0, -1) if data[:n] in self._ids)
            ids.append(self._ids[data[:n]])
            data = data[n:]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode(errors="replace")

    def text_format(self, closing_text: str = DEFAULT_CLOSING_TEXT) -> TextFormat:
        closing = Closing(self.encode, self.token_bytes, closing_text)
        return TextFormat(self.token_bytes, frozenset([self.end_of_text]), closing)
