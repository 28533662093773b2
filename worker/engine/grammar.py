"""Grammars of answers, JSON Schemas and calls of tools, kept by llguidance while tokens are sampled.

llguidance follows a grammar byte by byte and tells which tokens of the vocabulary can go on with it. Text
that is the only way on is asked for in the tokens that the tokenizer makes of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worker.engine import answer_form
from worker.model.chat import Chat
from worker.model.tools import Tool, ToolTag

if TYPE_CHECKING:
    from llguidance import LLMatcher

# White space between JSON's parts: none, a blank, or a line end and an indentation. Without a bound a model
# can go on with it until its tokens are used up.
_SPACE = "( |\\n {0,40})"
# What a caller's schema cannot change. `oneOf` is taken where its branches exclude each other.
_JSON_OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": _SPACE,
    "coerce_one_of": False,
    "lenient": False,
}
# Compiled grammars that are kept: callers ask with the same one again and again.
_KEPT = 16
# So that no schema holds up a step for longer than some 10 ms: items are at some 20 per µs, fuel at 14 to 50.
_INITIAL_LEXER_FUEL, _STEP_LEXER_FUEL, _STEP_MAX_ITEMS = 300_000, 100_000, 10_000
_MAX_LEXER_STATES, _MAX_GRAMMAR_SIZE = 10_000, 50_000


class UnsupportedFormError(ValueError):
    """A form that cannot be enforced; the message says why."""


def answer_grammar(
    schema: dict[str, object] | None, tools: Sequence[Tool], *, must_call: bool, most_calls: int
) -> str:
    """The grammar, in llguidance's Lark, of an answer that is JSON of a schema, or free text without one, or
    calls tools, if there are any. must_call: it is nothing but calls.

    Calls are written as the family writes them, behind an answer's text, and end it.
    """
    rules = []
    if tools:
        rules += _calls(tools, most_calls)
    open_calls = json.dumps(ToolTag.CALLS.value)
    if tools and must_call:
        rules.append(f"start: {open_calls} calls")
    elif schema is not None:
        rules += [f"start: json | {open_calls} calls" if tools else "start: json", f"json: {_json(schema)}"]
    elif tools:
        # Lazy: it ends where the tag does, and the text before it has none.
        rules += [
            "start: TEXT | open calls",
            "TEXT: /(.|\\n)*/",
            f"open[lazy]: TEXT {open_calls}",
        ]
    return "\n".join(["%llguidance {}", *rules, ""])


def _calls(tools: Sequence[Tool], most_calls: int) -> list[str]:
    more = f'(", " call){{0,{most_calls - 1}}}' if most_calls > 1 else ""
    rules = [
        f'calls: "[" call {more} {json.dumps("]" + ToolTag.CALLS_END.value)}',
        "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        begin = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        rules.append(f'call_{number}: {begin} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: {_json(tool.schema | {'type': 'object'})}")
    return rules


def _json(schema: dict[str, object]) -> str:
    return "%json " + json.dumps(schema | {"x-guidance": _JSON_OPTIONS})


class Grammars:
    """Compiles grammars for one vocabulary. May be used by several threads.

    Raises ImportError without llguidance.
    """

    def __init__(self, chat: Chat, vocabulary: int) -> None:
        """vocabulary: ids that can be sampled, padding included. Takes about a second for 128k."""
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        ends = [token_id for token_id in sorted(chat.end_ids) if token_id < vocabulary]
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(chat, ends[0])), n_vocab=vocabulary, eos_token=ends
        )
        self._limits = LLParserLimits(
            initial_lexer_fuel=_INITIAL_LEXER_FUEL,
            step_lexer_fuel=_STEP_LEXER_FUEL,
            step_max_items=_STEP_MAX_ITEMS,
            max_lexer_states=_MAX_LEXER_STATES,
            max_grammar_size=_MAX_GRAMMAR_SIZE,
            verbose_errors=False,
        )
        self.ends = torch.zeros(vocabulary, dtype=torch.bool)
        """Which tokens end an answer [vocab]."""
        self.ends[ends] = True
        self._compiled = lru_cache(maxsize=_KEPT)(self._compile)

    def compile(self, grammar: str) -> Grammar:
        """Raises UnsupportedFormError. Takes milliseconds, for the largest schemas half a second, and lets
        other threads run meanwhile.
        """
        return self._compiled(grammar)

    def _compile(self, grammar: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, limits=self._limits, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some faults show here
        if matcher.is_error():
            raise UnsupportedFormError(_why(matcher.get_error()))
        return Grammar(matcher, self.ends)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar."""

    _start: LLMatcher
    _ends: Tensor

    def matcher(self) -> answer_form.Matcher:
        """For a new answer."""
        return _Matcher(self._start.deep_copy(), self._ends)


class _Matcher:
    """See `answer_form.Matcher`."""

    __slots__ = ("_ends", "_matcher")

    def __init__(self, matcher: LLMatcher, ends: Tensor) -> None:
        self._matcher, self._ends = matcher, ends

    def accept(self, token_ids: Sequence[int]) -> None:
        if not self._matcher.consume_tokens(list(token_ids)):
            raise ValueError(f"the answer's form is left: {_first_line(self._matcher.get_error())}")

    def end(self) -> None:
        if self._matcher.is_error() or not self._matcher.is_accepting():
            error = _first_line(self._matcher.get_error())
            raise ValueError(f"the answer ends where its form does not: {error or 'it is not complete'}")

    def allowed(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # a limit; `end` then tells
            return self._ends
        allowed = np.unpackbits(bits, count=len(self._ends), bitorder="little")
        return torch.from_numpy(allowed).view(torch.bool)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, chat: Chat, end_id: int) -> None:
        self.tokens = chat.token_bytes
        self.special_token_ids = sorted(chat.special_ids)
        self.eos_token_id, self.bos_token_id = end_id, None
        self._encode = chat.encode_plain

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


def _why(error: str) -> str:
    """What the library says of a grammar, in words that its author can do something with."""
    if error.startswith("NoExtension"):
        return "nothing keeps it"
    if drawn := re.search(r"regex parse error:.*^\s*error: (.*?)$", error, re.DOTALL | re.MULTILINE):
        return f"a pattern is no regular expression that can be kept: {drawn[1]}"
    return re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", _first_line(error))


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:200]
