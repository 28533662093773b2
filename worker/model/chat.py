"""Tokens of a conversation, in the family's chat format, and the bytes that each token stands for.

Nobody's text can switch modes or inject tags or special tokens: texts are encoded as plain text, and the mode
is an argument. (The published template searches user text for `/think` and `</think>`; here such text stays
what it is.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tokenizers import Tokenizer

from worker.model.config import UnsupportedModelError

SYSTEM_MARK, TURN_MARK, END_MARK = "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"
CLOSE_TAG = "</think>"


class Role(Enum):
    """Who speaks; the value is the name in the chat format."""

    SYSTEM = "System"
    USER = "User"
    ASSISTANT = "Assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a prompt; the first `shared` of them are the system turn, which other requests may
    share.
    """

    ids: tuple[int, ...]
    shared: int


class Chat:
    """A model's tokenizer and chat format."""

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Iterable[int] = ()) -> None:
        """Raises UnsupportedModelError when the marks of the format are missing or tokens are not
        byte-level.
        """
        # Special tokens in a text are then encoded like any other characters.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._system, self._turn, self._end = (self._mark(m) for m in (SYSTEM_MARK, TURN_MARK, END_MARK))
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.end_ids = frozenset({self._end, *end_token_ids})
        self.token_bytes = _token_bytes(tokenizer, added.keys())

    @staticmethod
    def load(directory: Path, end_token_ids: Iterable[int] = ()) -> Chat:
        """Reads `directory`/tokenizer.json. Raises UnsupportedModelError with the path in the message."""
        path = directory / "tokenizer.json"
        try:
            return Chat(Tokenizer.from_str(path.read_text(encoding="utf-8")), end_token_ids)
        except OSError as error:
            raise UnsupportedModelError(f"{path}: {error.strerror}") from None
        except Exception as error:  # tokenizers raises plain Exception for a broken file
            raise UnsupportedModelError(f"{path}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, turns: Sequence[Turn], *, think: bool) -> Prompt:
        """Token ids of a conversation, up to where the model goes on.

        Texts are stripped of surrounding white space; of an assistant turn what follows its last `</think>`
        is kept. Raises ValueError unless a system turn is first and alone of its kind, and the last turn is
        the user's.
        """
        if not turns or turns[-1].role is not Role.USER:
            raise ValueError("the last turn must be the user's")
        if any(turn.role is Role.SYSTEM for turn in turns[1:]):
            raise ValueError("only the first turn may be the system's")
        system, rest = (turns[0].text, turns[1:]) if turns[0].role is Role.SYSTEM else ("", turns)
        ids = [self._system, *self.encode(f"{Role.SYSTEM.value}\n{system.strip()}\n")]
        shared = len(ids)
        for turn in rest:
            text = turn.text
            if turn.role is Role.ASSISTANT:
                text = text.rpartition(CLOSE_TAG)[2]
            ids += [self._turn, *self.encode(f"{turn.role.value}\n{text.strip()}\n")]
            if turn.role is Role.ASSISTANT:
                ids += [self._end, *self.encode("\n")]
        opening = "<think>\n" if think else "<think></think>"
        ids += [self._turn, *self.encode(f"{Role.ASSISTANT.value}\n{opening}")]
        return Prompt(tuple(ids), shared)

    def _mark(self, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise UnsupportedModelError(f"the tokenizer has no {text}, a mark of the chat format")
        return int(number)


def _token_bytes(tokenizer: Tokenizer, added: Iterable[int]) -> list[bytes]:
    """What each id stands for: added tokens stand for their text's absence, others for their byte-level
    symbols.
    """
    byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(byte_symbols())}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    skipped = frozenset(added)
    for symbols, number in vocabulary.items():
        if number in skipped:
            continue
        try:
            table[number] = b"".join(byte_of[symbol] for symbol in symbols)
        except KeyError:
            raise UnsupportedModelError(f"token {number} {symbols!r} is not byte-level BPE") from None
    return table


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte value in byte-level BPE (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
