"""Finds what makes the host wait for a device, without one: tensors of `meta`, which have no memory, stand
for those on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")

# What asks for numbers, or for a size that depends on numbers.
_ASKING = {"item", "tolist", "numpy", "cpu", "nonzero", "unique", "masked_select", "equal"}
_ASKING |= {"__bool__", "__int__", "__float__", "__index__", "__contains__"}


class Watch(TorchFunctionMode):
    """Notes what would wait for a GPU, and what would be launched only after that.

    To ask for a number waits. So does a copy between host and device, but one from pinned memory with
    `non_blocking`. Unseen, such copies are made where a tensor is made on the device of numbers, and where an
    operation there is given a list or a tensor on the host, as an index or otherwise, or a number to put at
    an index; and an index of booleans asks for their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.late: list[str] = []
        self._pinned: list[Tensor] = []
        self._stand_in = patch("kernels.transfer.is_gpu", lambda device: device == DEVICE)

    def __enter__(self) -> Self:
        self._stand_in.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._stand_in.stop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name == "pin_memory":
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        there = any(_on_device(leaf) for leaf in tree_leaves((args, kwargs)))
        if self._waits(name, args, kwargs):
            self.waits.append(name)
            if name == "tolist":
                return torch.zeros(args[0].shape, dtype=args[0].dtype).tolist()
        elif there and self.waits and name != "__get__":
            self.late.append(name)
        return func(*args, **kwargs)

    def _waits(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if name in ("tensor", "as_tensor"):
            return kwargs.get("device") == DEVICE
        if name == "to":
            to_device = DEVICE in (*args[1:], *kwargs.values())
            return to_device != _on_device(args[0]) and not self._in_turn(args[0], kwargs)
        if name == "copy_" and _on_device(args[0]):
            return not _on_device(args[1]) and not self._in_turn(args[1], kwargs)
        leaves = tree_leaves((args, kwargs))
        if not any(_on_device(leaf) for leaf in leaves):
            return False
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list) or (isinstance(i, Tensor) and i.dtype == torch.bool) for i in index):
                return True
            if name == "__setitem__" and any(isinstance(i, Tensor) for i in index):
                return not _on_device(args[2])
        return name in _ASKING or any(isinstance(leaf, Tensor) and not _on_device(leaf) for leaf in leaves)

    def _in_turn(self, source: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """Whether the device copies it in its turn."""
        return kwargs.get("non_blocking") is True and any(source is tensor for tensor in self._pinned)


def _on_device(value: object) -> bool:
    return isinstance(value, Tensor) and value.device == DEVICE
