"""Reads a Hugging Face model directory: single or sharded safetensors, either prefix of the family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kernels import Kernels
from worker.model.config import ModelConfig
from worker.model.network import Network

# The original checkpoints say `backbone.`, those saved by recent transformers `model.`.
_PREFIXES = ("backbone.", "model.")


class CheckpointError(ValueError):
    """The weights cannot be used. The message names the file or tensor."""


class Checkpoint:
    """The tensors of a model directory, read one at a time so that a model is never in memory twice."""

    def __init__(
        self,
        directory: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Finds every tensor's file. `progress(done, total)` is called after each tensor that is read.

        Raises CheckpointError when there are no weights or an index names a missing file.
        """
        self._dtype, self._device, self._progress = dtype, device, progress
        self._directory = directory
        self._file_of: dict[str, Path] = {}
        self._name_of: dict[str, str] = {}
        self._read = 0
        for path in _weight_files(directory):
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: not readable as safetensors: {error}") from None
            for name in names:
                plain = next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
                self._file_of[plain], self._name_of[plain] = path, name

    def __call__(self, name: str, *shape: int, optional: bool = False) -> Tensor | None:
        """Reads one tensor, by its name without prefix. Raises CheckpointError when it is missing or
        misshapen.
        """
        path = self._file_of.get(name)
        if path is None:
            if optional:
                return None
            raise CheckpointError(f"{self._directory}: tensor {name!r} is missing")
        with safe_open(path, framework="pt", device=str(self._device)) as file:
            tensor: Tensor = file.get_tensor(self._name_of[name])
        if tensor.shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, not {list(shape)}"
            )
        self._read += 1
        self._progress(self._read, len(self._file_of))
        return tensor.to(self._dtype)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of shards: {error!r}") from None
        missing = [shard for shard in shards if not (directory / shard).exists()]
        if missing:
            raise CheckpointError(
                f"{index}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]!r}"
            )
        return [directory / shard for shard in shards]
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    raise CheckpointError(f"{directory}: neither model.safetensors nor model.safetensors.index.json is there")


def load_network(
    directory: Path,
    config: ModelConfig,
    kernels: Kernels,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Network:
    """Loads the weights of a model directory. Raises CheckpointError."""
    return Network(config, Checkpoint(directory, dtype=dtype, device=device, progress=progress), kernels)
