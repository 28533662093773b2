"""Tokens of a conversation, in the family's chat format, and the bytes that each token stands for.

Nobody's text can switch modes or inject tags or special tokens: texts are encoded as plain text, and the mode
is an argument. (The published template searches user text for `/think` and `</think>`; here such text stays
what it is.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from worker.model.config import UnsupportedModelError
from worker.model.tools import Tool, ToolCall, calls_text, results_text, tools_text

SYSTEM_MARK, TURN_MARK, END_MARK = "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"
OPEN_TAG, CLOSE_TAG = TAGS = "<think>", "</think>"
_TAG = re.compile(f"({'|'.join(TAGS)})")


class Role(Enum):
    """Who speaks; the value is the name in the chat format."""

    SYSTEM = "System"
    USER = "User"
    ASSISTANT = "Assistant"
    TOOL = "Tool"
    """Stands in the user's turns there."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. calls: of tools, in an assistant's turn."""

    role: Role
    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a prompt; the first `shared` of them are the system turn, which other requests may
    share.
    """

    ids: tuple[int, ...]
    shared: int


class Chat:
    """A model's tokenizer and chat format.

    token_bytes[i]: what token i stands for; `b""` for special tokens. special_ids: of tokens that are no
    text; special_names: how they are spelled all the same. end_ids: of tokens that end a turn.
    """

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Iterable[int] = ()) -> None:
        """Raises UnsupportedModelError when the marks of the format are missing or tokens are not
        byte-level.
        """
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = _plain(tokenizer)
        self._system, self._turn, self._end = (self._mark(m) for m in (SYSTEM_MARK, TURN_MARK, END_MARK))
        # In some models of the family the thinking tags are tokens of their own.
        self._tags = {token.content: number for number, token in added.items() if token.content in TAGS}
        texts = {
            number: token.content
            for number, token in added.items()
            if token.content in TAGS or not token.special
        }
        self.special_ids = frozenset(added) - frozenset(texts)
        self.special_names = {number: added[number].content for number in self.special_ids}
        self.end_ids = frozenset({self._end, *end_token_ids})
        self.token_bytes = _token_bytes(tokenizer, self.special_ids, texts)

    @staticmethod
    def load(directory: Path, end_token_ids: Iterable[int] = ()) -> Chat:
        """Reads `directory`/tokenizer.json. Raises UnsupportedModelError with the path in the message."""
        path = directory / "tokenizer.json"
        try:
            return Chat(Tokenizer.from_str(path.read_text(encoding="utf-8")), end_token_ids)
        except OSError as error:
            raise UnsupportedModelError(f"{path}: {error.strerror}") from None
        except BaseException as error:
            # For a broken file tokenizers raises plain Exception, or panics, which is none.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise UnsupportedModelError(f"{path}: {error}") from None
            raise

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of our own, in which a thinking tag is a thinking tag."""
        if not self._tags:
            return self.encode_plain(text)
        ids: list[int] = []
        for part in _TAG.split(text):
            ids += [self._tags[part]] if part in self._tags else self.encode_plain(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of anybody's text."""
        # Unlike `encode`, which takes one text, this lets other threads run meanwhile.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids

    def prompt(self, turns: Sequence[Turn], *, think: bool, tools: Sequence[Tool] = ()) -> Prompt:
        """Token ids of a conversation, up to where the model goes on.

        Texts are stripped of surrounding white space; of an assistant turn what follows its last `</think>`
        is kept. The results of tools that stand together become one turn of the user's. Raises ValueError
        unless a system turn is first and alone of its kind, and the last turn is the user's or a tool's.
        """
        if not turns or turns[-1].role not in (Role.USER, Role.TOOL):
            raise ValueError("the last turn must be the user's or a tool's")
        if any(turn.role is Role.SYSTEM for turn in turns[1:]):
            raise ValueError("only the first turn may be the system's")
        system, rest = (turns[0].text, turns[1:]) if turns[0].role is Role.SYSTEM else ("", turns)
        parts = [system.strip(), *([tools_text(tools)] if tools else [])]
        ids = [self._system, *self.encode_plain(f"{Role.SYSTEM.value}\n{_paragraphs(parts)}\n")]
        shared = len(ids)
        for is_result, group in groupby(rest, lambda turn: turn.role is Role.TOOL):
            if is_result:
                results = results_text([turn.text for turn in group])
                ids += [self._turn, *self.encode_plain(f"{Role.USER.value}\n{results}\n")]
                continue
            for turn in group:
                ids += self._encode_turn(turn)
        opening = f"{OPEN_TAG}\n" if think else OPEN_TAG + CLOSE_TAG
        ids += [self._turn, *self.encode(f"{Role.ASSISTANT.value}\n{opening}")]
        return Prompt(tuple(ids), shared)

    def _encode_turn(self, turn: Turn) -> list[int]:
        text = turn.text
        if turn.role is Role.ASSISTANT:
            text = text.rpartition(CLOSE_TAG)[2]
        text = _paragraphs([text.strip(), *([calls_text(turn.calls)] if turn.calls else [])])
        ids = [self._turn, *self.encode_plain(f"{turn.role.value}\n{text}\n")]
        if turn.role is Role.ASSISTANT:
            ids += [self._end, *self.encode_plain("\n")]
        return ids

    def _mark(self, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise UnsupportedModelError(f"the tokenizer has no {text}, a mark of the chat format")
        return int(number)


def _paragraphs(texts: Sequence[str]) -> str:
    """Those that are not empty, with an empty line between them."""
    return "\n\n".join(filter(None, texts))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for which no text holds an added token: all are spelled out like any other characters."""
    settings = json.loads(tokenizer.to_str())
    for token in settings["added_tokens"]:
        token["special"] = True
    plain = Tokenizer.from_str(json.dumps(settings))
    plain.encode_special_tokens = True
    return plain


def _token_bytes(tokenizer: Tokenizer, specials: frozenset[int], texts: dict[int, str]) -> list[bytes]:
    """What each id stands for: specials for nothing, `texts` for their text, others for the bytes that their
    symbols spell.
    """
    byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(byte_symbols())}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for symbols, number in vocabulary.items():
        if number in specials:
            continue
        if number in texts:
            table[number] = texts[number].encode()
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
