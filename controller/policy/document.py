"""YAML text to plain values, with the place of each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

Path = tuple[str | int, ...]
"""Keys and indices that lead from the document's root to a value."""

DEEPEST = 32
"""Values within values. The parser's time grows with the square of this."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file; both numbers begin at 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a policy file."""

    mark: Mark
    message: str


class PolicyError(Exception):
    """A policy file that cannot be used, with everything that is wrong with it. Prints as `FILE:LINE:COLUMN:
    message` lines.
    """

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = tuple(sorted(problems, key=lambda p: (p.mark.line, p.mark.column, p.message)))
        super().__init__(
            "\n".join(f"{file}:{p.mark.line}:{p.mark.column}: {p.message}" for p in self.problems)
        )


class UnreadableError(PolicyError):
    """A policy file that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values (dict, list, str, int, float, bool) and where they and their keys stand."""

    value: object
    marks: Mapping[Path, Mark]
    key_marks: Mapping[Path, Mark]

    def mark(self, path: Path) -> Mark:
        """Where a value stands; for one that is not there, where its nearest parent does."""
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path]

    def key_mark(self, path: Path) -> Mark:
        """Where a key stands; for what has none, where its value does."""
        return self.key_marks.get(path) or self.mark(path)


def show_path(path: Path) -> str:
    """`tenants[0].budget.max`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(text: str, file: str) -> Document:
    """Reads one YAML 1.2 document.

    Raises PolicyError for what is not YAML, duplicate keys, aliases, tags and keys without a value.
    """
    reader = _Reader(text)
    try:
        value = reader.read_root()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
        raise PolicyError(file, [Problem(where, _one_line(error.problem or error.context))]) from None
    except ReaderError as error:
        before = text[: error.position]
        where = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        character = f"character U+{ord(text[error.position]):04X} is not allowed"
        raise PolicyError(file, [Problem(where, character)]) from None
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, AssertionError) as error:
        # ruamel.yaml has no common exception for damaged directives, escapes and control characters.
        raise PolicyError(file, [Problem(Mark(1, 1), f"not YAML: {_one_line(str(error))}")]) from None
    except RecursionError:
        raise PolicyError(file, [Problem(Mark(1, 1), "nested too deeply")]) from None
    if reader.problems:
        raise PolicyError(file, reader.problems)
    return Document(value, reader.marks, reader.key_marks)


def _one_line(text: str | None) -> str:
    return " ".join((text or "not YAML").split())


def _mark(event: Event) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


class _Reader:
    """Goes through the parser's events once, collecting values, places and problems.

    There are no nodes and no comments in between, as ruamel.yaml's own loaders make them: most of the time
    that a file of many tenants takes is spent in the parser anyway.
    """

    def __init__(self, text: str) -> None:
        self.marks: dict[Path, Mark] = {}
        self.key_marks: dict[Path, Mark] = {}
        self.problems: list[Problem] = []
        self._yaml = YAML(typ="safe", pure=True)
        self._events: Iterator[Event] = self._yaml.parse(text)

    def read_root(self) -> object:
        """The one document's value."""
        value: object = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents == 1:
                    value = self._read(next(self._events), ())
                else:
                    problem = Problem(_mark(event), "a second document begins; a policy file has one")
                    self.problems.append(problem)
                    break
        if documents == 0:
            self.problems.append(Problem(Mark(1, 1), "the file is empty"))
        return value

    def _read(self, event: Event, path: Path) -> object:
        if len(path) > DEEPEST:
            raise RecursionError
        self.marks[path] = _mark(event)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, AliasEvent):
            # `defaults` serves their purpose, and an alias can hold itself.
            advice = "share settings through 'defaults'"
            self.problems.append(
                Problem(_mark(event), f"{_at(path)}alias *{event.anchor} is not allowed; {advice}")
            )
            return None
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: Path) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            values.append(self._read(event, (*path, len(values))))
        return values

    def _mapping(self, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self.problems.append(Problem(_mark(event), f"{_at(path)}a key must be plain text"))
                self._skip(event)
                self._skip(next(self._events))
                continue
            key = self._text(event, path)
            here = (*path, key)
            if key in values:
                first = self.key_marks[here]
                self.problems.append(
                    Problem(
                        _mark(event),
                        f"{show_path(here)}: duplicate key; the first is on line {first.line}",
                    )
                )
                self._skip(next(self._events))
                continue
            self.key_marks[here] = _mark(event)
            values[key] = self._read(next(self._events), here)
        return values

    def _skip(self, event: Event) -> None:
        """Leaves out the value that begins with an event."""
        depth = 0
        while True:
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth == 0:
                return
            if depth > DEEPEST:
                raise RecursionError
            event = next(self._events)

    def _text(self, event: ScalarEvent, path: Path) -> str:
        text = str(event.value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            self.problems.append(Problem(_mark(event), f"{_at(path)}{half} is half of a character"))
            return ""
        return text

    def _scalar(self, event: ScalarEvent, path: Path) -> object:
        text = self._text(event, path)
        tag = event.ctag
        if tag is None or str(tag) == "!":
            tag = self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        kind = str(tag or "").removeprefix("tag:yaml.org,2002:")
        if kind == "null":
            # Nothing has no place of its own: it is reported at its key.
            mark = self.key_marks.get(path, self.marks[path])
            self.problems.append(Problem(mark, f"{_at(path)}has no value; give one or remove the key"))
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            if kind == "float":
                return float(text)
        except ValueError:
            return text  # .inf, .nan and exotic spellings stay text, which no number accepts
        if kind in ("str", "timestamp", "merge", "value"):
            return text
        self.problems.append(Problem(_mark(event), f"{_at(path)}tag !{kind.lstrip('!')} is not allowed"))
        return None


def _at(path: Path) -> str:
    return f"{show_path(path)}: " if path else ""
