"""Calls of tools in an answer's text: `<TOOLCALL>[{"name": …, "arguments": {…}}, …]</TOOLCALL>`.

What is written as a call is read exactly, or reported as malformed, and never guessed at.
"""

import enum
import json
import re
from collections.abc import Collection, Iterator

from worker.engine.generation import CallPiece, MalformedCall
from worker.engine.text import prefix_start
from worker.model.tools import ToolTag

_OPEN, _CLOSE = ToolTag.CALLS.value, ToolTag.CALLS_END.value
_MAX_SHOWN = 4096
_JSON_SPACE = " \t\n\r"

Found = str | CallPiece | MalformedCall


class _Expected(enum.Enum):
    """What comes next."""

    TEXT = "text"
    LIST = "a list of calls"
    FIRST = "a call or the end of the list"
    CALL = "a call"
    COMMA = "a comma or the end of the list"
    REST_OF_CALL = "the rest of a call"
    CLOSE = _CLOSE
    LOST = "the end of what is malformed"


# Where a character leads; white space leads nowhere.
_NEXT = {
    _Expected.LIST: {"[": _Expected.FIRST},
    _Expected.FIRST: {"{": _Expected.REST_OF_CALL, "]": _Expected.CLOSE},
    _Expected.CALL: {"{": _Expected.REST_OF_CALL},
    _Expected.COMMA: {",": _Expected.CALL, "]": _Expected.CLOSE},
}


class ToolCallScanner:
    """Takes the calls out of a stream of text.

    It is fed the stream in pieces and gives, over any cutting of the same stream into pieces, the same text
    and calls, those left out that are reported as malformed. It holds back a tail of the text that may become
    `<TOOLCALL>`, and of a call what precedes its arguments. For reading only: `calls`, how many were complete
    and well-formed.
    """

    __slots__ = ("_call", "_expected", "_held", "_index", "_most_calls", "_names", "_why", "calls")

    def __init__(self, names: Collection[str], most_calls: int) -> None:
        """names: of the tools that may be called; none takes no text for a call."""
        self._names, self._most_calls = names, most_calls
        self._expected = _Expected.TEXT
        self._held = ""  # of the text, of `</TOOLCALL>`, or all that is malformed
        self._call = _Call()
        self._index = 0
        self._why = ""
        self.calls = 0

    @property
    def begun(self) -> bool:
        """Whether a call was written, or is under way so far that something will be shown or reported."""
        # After `<` alone a thinking tag may come, which is dropped.
        return self._index > 0 or self._expected is not _Expected.TEXT or len(self._held) > 1

    def push(self, text: str) -> Iterator[Found]:
        """What the text brings, in order. To be read to its end."""
        if not self._names:
            yield text
            return
        while text:
            match self._expected:
                case _Expected.TEXT:
                    clear, text = self._to_call(self._held + text)
                    if clear:
                        yield clear
                case _Expected.REST_OF_CALL:
                    arguments, text = self._call.push(text)
                    yield from self._follow_call(arguments)
                case _Expected.CLOSE:
                    text = self._to_close((self._held + text).lstrip(_JSON_SPACE))
                case _Expected.LOST:
                    searched, self._held = len(self._held), self._held + text
                    at = self._held.find(_CLOSE, max(0, searched - len(_CLOSE)))
                    if at < 0:
                        return
                    text = self._held[at + len(_CLOSE) :]
                    yield self._malformed(self._held[:at], self._why)
                    self._expected, self._held = _Expected.TEXT, ""
                case expected:
                    text = self._to_next(expected, text.lstrip(_JSON_SPACE))

    def flush(self) -> Iterator[Found]:
        """What the end of the answer brings."""
        held, self._held = self._held, ""
        match self._expected:
            case _Expected.TEXT:
                if held:
                    yield held
            case _Expected.LOST:
                yield self._malformed(held, self._why)
            case _Expected.REST_OF_CALL:
                yield self._malformed(self._call.text, "the answer ends before the call does")
            case expected:
                yield self._malformed(held, f"the answer ends where {expected.value} was expected")
        self._expected = _Expected.TEXT

    def _to_call(self, text: str) -> tuple[str, str]:
        """Text outside calls, and what follows `<TOOLCALL>`."""
        at = text.find(_OPEN)
        if at >= 0:
            self._expected, self._held = _Expected.LIST, ""
            return text[:at], text[at + len(_OPEN) :]
        at = prefix_start(text, _OPEN)
        self._held = text[at:]
        return text[:at], ""

    def _to_next(self, expected: _Expected, text: str) -> str:
        if not text:
            return ""
        following = _NEXT[expected].get(text[0])
        if following is None:
            self._lose(f"{expected.value} was expected, not {text[0]!r}")
            return text
        if following is _Expected.REST_OF_CALL:
            if self._index == self._most_calls:
                self._lose(f"no more calls are allowed than {self._most_calls}")
                return text
            self._expected, self._call = following, _Call()
            return text
        self._expected = following
        return text[1:]

    def _to_close(self, text: str) -> str:
        self._held = ""
        if text.startswith(_CLOSE):
            self._expected = _Expected.TEXT
            return text[len(_CLOSE) :]
        if _CLOSE.startswith(text):
            self._held = text
            return ""
        self._lose(f"{_CLOSE} was expected, not {text[:1]!r}")
        return text

    def _follow_call(self, arguments: str) -> Iterator[Found]:
        """arguments: what the newest piece of text has brought of them."""
        call = self._call
        if call.broken:
            self._lose(call.broken, call.text)
        elif call.complete:
            name, why = _read(call.text, self._names)
            if why:
                yield self._malformed(call.text, why)
            else:
                if not call.announced:
                    yield CallPiece(self._index, name, call.arguments)
                elif arguments:
                    yield CallPiece(self._index, "", arguments)
                self.calls += 1
                self._index += 1
            self._expected = _Expected.COMMA
        elif call.announced and arguments:
            yield CallPiece(self._index, "", arguments)
        elif call.name in self._names and not call.announced:
            call.announced = True
            yield CallPiece(self._index, call.name, call.arguments)

    def _lose(self, why: str, text: str = "") -> None:
        self._expected, self._why, self._held = _Expected.LOST, why, text

    def _malformed(self, text: str, why: str) -> MalformedCall:
        self._index += 1
        return MalformedCall(self._index - 1, text[:_MAX_SHOWN], why)


class _Call:
    """A call's JSON object, from its `{` on, as far as it has come.

    complete: its last `}` has come. broken: why it can be no JSON object, or empty. name: of the tool, once
    the arguments have begun behind it in the usual order. announced: somebody was told of it.
    """

    # What may end a string, and what stands out outside one. A raw control character, and a `<` outside
    # strings, are no JSON: without them, nothing more would be found behind a quote that is missing.
    _IN_STRING = re.compile(r'["\\\x00-\x1f]')
    _OUTSIDE = re.compile(r'["{}\[\]<]')

    __slots__ = (
        "_arguments", "_depth", "_escaped", "_in_arguments", "_in_string", "_parts", "announced", "broken",
        "complete", "name",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = self._in_arguments = False
        self.complete = self.announced = False
        self.broken = ""
        self.name = ""

    @property
    def text(self) -> str:
        """All of it that has come."""
        return "".join(self._parts)

    @property
    def arguments(self) -> str:
        """Of it, the arguments' text."""
        return "".join(self._arguments)

    def push(self, text: str) -> tuple[str, str]:
        """Takes text to its end, or to where it breaks: what that brings of the arguments, and what is
        behind it.
        """
        at, begin, end = int(self._escaped), 0, len(text)
        self._escaped = False
        arguments = ""
        while not (self.complete or self.broken):
            found = (self._IN_STRING if self._in_string else self._OUTSIDE).search(text, at)
            if found is None:
                break
            at = found.end()
            character = found[0]
            if self._in_string:
                if character == "\\":
                    self._escaped = at == end
                    at += 1
                elif character == '"':
                    self._in_string = False
                else:
                    self.broken, end = "a string of it has a control character", at - 1
            elif character == '"':
                self._in_string = True
            elif character == "<":
                self.broken, end = "it has a < outside of strings", at - 1
            elif character in "{[":
                self._depth += 1
                if self._depth == 2 and not self._arguments:
                    self._in_arguments, begin = True, at - 1
                    if character == "{":
                        self.name = _name("".join(self._parts) + text[: at - 1])
            else:
                self._depth -= 1
                if self._depth == 1 and self._in_arguments:
                    self._in_arguments, arguments = False, text[begin:at]
                    self._arguments.append(arguments)
                elif self._depth == 0:
                    self.complete, end = True, at
        if self._in_arguments:
            arguments = text[begin:end]
            self._arguments.append(arguments)
        self._parts.append(text[:end])
        return arguments, text[end:]


def _name(head: str) -> str:
    """The tool's name, of a call that is written up to its arguments; empty where it is in another order."""
    try:
        call = json.loads(head + "{}}")
    except ValueError:
        return ""
    is_usual = isinstance(call, dict) and list(call) == ["name", "arguments"]
    return call["name"] if is_usual and isinstance(call["name"], str) else ""


def _read(text: str, names: Collection[str]) -> tuple[str, str]:
    """The name of the tool that a call is of, and what is wrong with it, or an empty string."""
    try:
        # Objects as tuples of pairs, so that what is given twice is seen.
        fields = json.loads(text, object_pairs_hook=tuple, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return "", f"it is no JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError):
        return "", "it is no JSON that could be read"
    if sorted(field for field, _ in fields) != ["arguments", "name"]:
        return "", "a call has a name and arguments, and nothing else"
    call = dict(fields)
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or name not in names:
        return "", f"there is no tool of the name {json.dumps(name, ensure_ascii=False)[:80]}"
    if not isinstance(arguments, tuple):
        return "", "its arguments are no object"
    return name, ""


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
