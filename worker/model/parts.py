"""A network's parts as a list of tensors and back, so that a compiled step can be given the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

from torch import Tensor

from worker.model.linear import PackedLinear

T = TypeVar("T")


def tensors_of(part: object) -> Iterator[Tensor]:
    """The tensors in a tensor, list, tuple or dataclass, in order. A packed weight's are the plain one's."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (list, tuple)):
        for member in part:
            yield from tensors_of(member)
    elif isinstance(part, PackedLinear):
        yield from tensors_of(part.plain)
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors_of(getattr(part, field.name))


def with_tensors(part: T, tensors: Iterator[Tensor]) -> T:
    """A part like this one with the next tensors in place of its own; packed projections become plain."""
    if isinstance(part, Tensor):
        return cast(T, next(tensors))
    if isinstance(part, (list, tuple)):
        return cast(T, type(part)(with_tensors(member, tensors) for member in part))
    if isinstance(part, PackedLinear):
        return cast(T, with_tensors(part.plain, tensors))
    if is_dataclass(part) and not isinstance(part, type):
        changed = {f.name: with_tensors(getattr(part, f.name), tensors) for f in fields(part)}
        return replace(part, **changed)
    return part
