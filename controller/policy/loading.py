"""Loads a policy file, or says where and why it cannot be used."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path as FilePath

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from controller.policy.document import (
    Document,
    Mark,
    Path,
    PolicyError,
    Problem,
    UnreadableError,
    read_document,
    show_path,
)
from controller.policy.model import Policy
from controller.policy.resolve import resolve
from controller.policy.schema import PolicyFile, did_you_mean
from controller.policy.units import shown

MAX_BYTES = 16 * 2**20


def load_policy(file: FilePath, environ: Mapping[str, str] | None, secrets: FilePath | None = None) -> Policy:
    """Loads a policy from a file; API keys referred to by name come from `environ` and from the files of the
    directory `secrets`, and are left out without `environ`.

    Raises PolicyError; when the file cannot be read, UnreadableError.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        problem = Problem(Mark(1, 1), f"cannot be read: {error.strerror}")
        raise UnreadableError(str(file), [problem]) from None
    if len(data) > MAX_BYTES:
        raise PolicyError(str(file), [Problem(Mark(1, 1), f"larger than {MAX_BYTES >> 20} MiB")])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        problem = Problem(Mark(line, column), f"byte 0x{data[error.start]:02x} is not UTF-8")
        raise PolicyError(str(file), [problem]) from None
    return parse_policy(text, str(file), environ, secrets)


def parse_policy(
    text: str, name: str, environ: Mapping[str, str] | None, secrets: FilePath | None = None
) -> Policy:
    """Loads a policy from text; `name` stands for the file in errors. Raises PolicyError."""
    document = read_document(text, name)
    if not isinstance(document.value, dict):
        raise PolicyError(
            name, [Problem(document.mark(()), "the file must hold keys and values: apiVersion, tenants")]
        )
    try:
        file = PolicyFile.model_validate(document.value)
    except ValidationError as error:
        problems = [_problem(document, details) for details in error.errors(include_url=False)]
        raise PolicyError(name, problems) from None
    return resolve(file, document, name, text, environ, secrets)


def _problem(document: Document, details: ErrorDetails) -> Problem:
    """One of pydantic's errors, in the file's terms."""
    kind, value = details["type"], details["input"]
    path = _known_part(document, details["loc"])
    if kind == "extra_forbidden":
        allowed = _fields(path[:-1])
        hint = did_you_mean(path[-1], allowed) or f"; known are {', '.join(allowed)}"
        return Problem(document.key_mark(path), f"{show_path(path)}: unknown key{hint}")
    if kind == "missing":
        missing = str(details["loc"][-1])
        return Problem(document.mark(path), f"{show_path((*path, missing))}: must be set")
    if kind in ("model_type", "dict_type"):
        message = f"{shown(value)} stands where keys and values should"
    elif kind == "tuple_type":
        message = f"{shown(value)} stands where a list should"
    else:
        message = details["msg"]
    # A curve's name is a key; every other value has a place of its own.
    mark = document.key_mark(path) if details["loc"][-1:] == ("[key]",) else document.mark(path)
    return Problem(mark, f"{show_path(path)}: {message}")


def _known_part(document: Document, loc: tuple[int | str, ...]) -> Path:
    """The leading part of a location that stands in the file."""
    path: Path = ()
    for part in loc:
        if (*path, part) not in document.marks:
            break
        path = (*path, part)
    return path


def _fields(path: Path) -> list[str]:
    """Keys that the mapping at a path may have."""
    kind: object = PolicyFile
    for part in path:
        kind = _inside(kind, part)
    return list(_by_key(kind)) if _is_section(kind) else []


def _inside(kind: object, part: str | int) -> object:
    """The kind of value that stands under a key or at an index; None when that is not known."""
    if _is_section(kind):
        kind = _by_key(kind).get(str(part))
    elif typing.get_origin(kind) in (dict, tuple):
        kind = next((arg for arg in typing.get_args(kind) if _is_section(arg)), None)
    if isinstance(kind, types.UnionType):
        return next((arg for arg in typing.get_args(kind) if _is_section(arg)), None)
    return kind


def _by_key(section: type[BaseModel]) -> dict[str, object]:
    """What stands under each key of a section."""
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}


def _is_section(kind: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
