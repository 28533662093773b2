"""YAML text to plain values, with the place of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Path = tuple[str | int, ...]
"""Keys and indices that lead from the document's root to a value."""


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


class _PlainComposer(Composer):
    """Composes documents without aliases: `defaults` serves their purpose, and an alias can hold itself."""

    def compose_node(self, parent: Node | None, index: int | Node | None) -> Node | None:
        if self.parser.check_event(AliasEvent):
            event = self.parser.get_event()
            raise ComposerError(
                problem=f"alias *{event.anchor} is not allowed; share settings through 'defaults'",
                problem_mark=event.start_mark,
            )
        node: Node | None = super().compose_node(parent, index)
        return node


def read_document(text: str, file: str) -> Document:
    """Reads one YAML 1.2 document.

    Raises PolicyError for what is not YAML, duplicate keys, aliases, tags and keys without a value.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = _PlainComposer
    try:
        root = yaml.compose(text)
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
    if root is None:
        raise PolicyError(file, [Problem(Mark(1, 1), "the file is empty")])
    reader = _Reader()
    value = reader.read(root, ())
    if reader.problems:
        raise PolicyError(file, reader.problems)
    return Document(value, reader.marks, reader.key_marks)


def _one_line(text: str | None) -> str:
    return " ".join((text or "not YAML").split())


def _mark(node: Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


class _Reader:
    """Walks the nodes once, collecting values, places and problems."""

    def __init__(self) -> None:
        self.marks: dict[Path, Mark] = {}
        self.key_marks: dict[Path, Mark] = {}
        self.problems: list[Problem] = []

    def read(self, node: Node, path: Path) -> object:
        self.marks[path] = _mark(node)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: Node, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem(_mark(key_node), f"{_at(path)}a key must be plain text"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.key_marks[here]
                self.problems.append(
                    Problem(
                        _mark(key_node),
                        f"{show_path(here)}: duplicate key; the first is on line {first.line}",
                    )
                )
                continue
            self.key_marks[here] = _mark(key_node)
            values[key] = self.read(value_node, here)
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> object:
        text = str(node.value)
        kind = str(node.tag or "").removeprefix("tag:yaml.org,2002:")
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
        self.problems.append(Problem(_mark(node), f"{_at(path)}tag !{kind.lstrip('!')} is not allowed"))
        return None


def _at(path: Path) -> str:
    return f"{show_path(path)}: " if path else ""
