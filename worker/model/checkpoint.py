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
from worker.model.linear import WeightFormat
from worker.model.network import Network

# The original checkpoints say `backbone.`, those saved by some versions of transformers `model.`.
_PREFIXES = ("backbone.", "model.")
# Heads for predicting several tokens at once: not part of the model proper.
_IGNORED = "mtp."
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class CheckpointError(ValueError):
    """The weights cannot be used. The message names the file or tensor."""


class Checkpoint:
    """The tensors of a model directory, read one at a time so that a model is never in memory twice."""

    def __init__(
        self,
        directory: Path,
        *,
        device: torch.device,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Finds every tensor's file. `progress(done, total)` is called after each tensor that is read.

        Raises CheckpointError when there are no weights, a file is damaged, or an index names a missing file.
        """
        self._device, self._progress = device, progress
        self._directory = directory
        self._file_of: dict[str, Path] = {}
        self._name_of: dict[str, str] = {}
        self._read: set[str] = set()
        for path in _weight_files(directory):
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: not readable as safetensors: {error}") from None
            for name in names:
                plain = next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
                if not plain.startswith(_IGNORED):
                    self._file_of[plain], self._name_of[plain] = path, name

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Reads one tensor, by its name without prefix, in the number type of the file.

        Raises CheckpointError when it is missing, misshapen or not of floating point.
        """
        path = self._file_of.get(name)
        if path is None:
            raise CheckpointError(f"{self._directory}: tensor {name!r} is missing")
        with safe_open(path, framework="pt", device=str(self._device)) as file:
            tensor: Tensor = file.get_tensor(self._name_of[name])
        if tensor.shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, not {list(shape)}"
            )
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name!r} is of type {tensor.dtype}:"
                " quantised checkpoints are not supported, --weights quantises"
            )
        self._read.add(name)
        self._progress(len(self._read), len(self._file_of))
        return tensor

    def check_all_read(self, *ignored: str) -> None:
        """Raises CheckpointError when a tensor was not asked for: the model would not be what was saved."""
        unread = sorted(self._file_of.keys() - self._read - set(ignored))
        if unread:
            raise CheckpointError(
                f"{self._directory}: {len(unread)} tensors have no place in a model of this config, "
                f"first {unread[0]!r}"
            )


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(weight_map.values()))
            if not shards or not all(isinstance(shard, str) for shard in shards):
                raise ValueError("weight_map must name a file for each tensor")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not an index of shards: {error!r}") from None
        missing = [shard for shard in shards if not (directory / shard).is_file()]
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
    weights: WeightFormat = WeightFormat.FULL,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Network:
    """Loads the weights of a model directory, the projections as `weights` says. Raises CheckpointError."""
    checkpoint = Checkpoint(directory, device=device, progress=progress)
    network = Network(config, checkpoint, kernels, dtype=dtype, weights=weights)
    # Some files hold the head although it is the embeddings.
    checkpoint.check_all_read(*(["lm_head.weight"] if config.tied_embeddings else []))
    return network
