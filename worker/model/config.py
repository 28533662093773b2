"""The shape of a `nemotron_h` model, read from a Hugging Face config.json of any age."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class UnsupportedModelError(ValueError):
    """The model asks for something that this worker does not do. The message says what."""


class LayerKind(Enum):
    """What a layer's mixer is, by its letter in the published patterns."""

    MAMBA = "M"
    MLP = "-"
    ATTENTION = "*"


_KIND_NAMES = {
    "mamba": LayerKind.MAMBA,
    "mamba2": LayerKind.MAMBA,
    "linear_attention": LayerKind.MAMBA,
    "mlp": LayerKind.MLP,
    "attention": LayerKind.ATTENTION,
    "full_attention": LayerKind.ATTENTION,
    "moe": None,
}

Json = Mapping[str, object]

_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one model. All sizes are counts of numbers; the inner width is mamba_heads ×
    mamba_head_dim.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerKind, ...]
    mlp_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mamba_heads: int
    mamba_head_dim: int
    state_size: int
    groups: int
    conv_kernel: int
    chunk_size: int
    norm_eps: float
    time_step_limit: tuple[float, float]
    mamba_bias: bool
    conv_bias: bool
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    max_sequence_tokens: int
    end_token_ids: tuple[int, ...]

    @property
    def inner_size(self) -> int:
        """Width of the Mamba mixer: not `expand` × hidden_size in this family."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: x, B and C side by side."""
        return self.inner_size + 2 * self.groups * self.state_size

    def count(self, kind: LayerKind) -> int:
        """Number of layers of a kind."""
        return self.layers.count(kind)

    @staticmethod
    def load(directory: Path) -> ModelConfig:
        """Reads `directory`/config.json. Raises UnsupportedModelError or OSError, with the path in the
        message.
        """
        path = directory / "config.json"
        try:
            # Published configs hold a bare Infinity, which Python's reader accepts.
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UnsupportedModelError(f"{path}: not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise UnsupportedModelError(f"{path}: an object is needed, not {type(raw).__name__}")
        try:
            return ModelConfig.parse(raw)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path}: {error}") from None

    @staticmethod
    def parse(raw: Json) -> ModelConfig:
        """Reads old and new spellings. Raises UnsupportedModelError with the key and its value."""
        _refuse(raw)
        heads, groups = _size(raw, "mamba_num_heads"), _size(raw, "n_groups", "mamba_n_groups")
        query_heads = _size(raw, "num_attention_heads")
        kv_heads = _size(raw, "num_key_value_heads", default=query_heads)
        if heads % groups:
            raise UnsupportedModelError(f"mamba_num_heads {heads} is not a multiple of n_groups {groups}")
        if query_heads % kv_heads:
            raise UnsupportedModelError(
                f"num_attention_heads {query_heads} is not a multiple of num_key_value_heads {kv_heads}"
            )
        return ModelConfig(
            vocab_size=_size(raw, "vocab_size"),
            hidden_size=_size(raw, "hidden_size"),
            layers=_layers(raw),
            mlp_size=_size(raw, "intermediate_size"),
            query_heads=query_heads,
            kv_heads=kv_heads,
            head_dim=_size(raw, "head_dim", "attention_head_dim"),
            mamba_heads=heads,
            mamba_head_dim=_size(raw, "mamba_head_dim"),
            state_size=_size(raw, "ssm_state_size", "mamba_d_state"),
            groups=groups,
            conv_kernel=_size(raw, "conv_kernel", "mamba_d_conv", default=4),
            chunk_size=_size(raw, "chunk_size", "mamba_chunk_size", default=128),
            norm_eps=_number(raw, "layer_norm_epsilon", "rms_norm_eps", "norm_eps", default=1e-5),
            time_step_limit=_time_step_limit(raw),
            mamba_bias=_flag(raw, "use_bias", default=False),
            conv_bias=_flag(raw, "use_conv_bias", "mamba_conv_bias", default=True),
            attention_bias=_flag(raw, "attention_bias", default=False),
            mlp_bias=_flag(raw, "mlp_bias", default=False),
            tied_embeddings=_flag(raw, "tie_word_embeddings", default=False),
            max_sequence_tokens=_size(raw, "max_position_embeddings", default=131072),
            end_token_ids=_end_token_ids(raw),
        )


def _refuse(raw: Json) -> None:
    if raw.get("model_type", "nemotron_h") != "nemotron_h":
        raise UnsupportedModelError(f"model_type {raw['model_type']!r}: this worker runs nemotron_h")
    expected: dict[str, tuple[object, ...]] = {
        "mamba_hidden_act": ("silu",),
        "mlp_hidden_act": ("relu2",),
        "sliding_window": (None,),
        "residual_in_fp32": (False,),
    }
    for key, allowed in expected.items():
        if key in raw and raw[key] not in allowed:
            raise UnsupportedModelError(f"{key} {raw[key]!r} is not supported: only {allowed[0]!r} is")


def _find(raw: Json, names: tuple[str, ...]) -> object:
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def _size(raw: Json, *names: str, default: int | None = None) -> int:
    value = _find(raw, names)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModelError(f"{names[0]} must be a whole number of at least 1, not {value!r}")
    return value


def _number(raw: Json, *names: str, default: float) -> float:
    value = _find(raw, names)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise UnsupportedModelError(f"{names[0]} must be a positive number, not {value!r}")
    return float(value)


def _flag(raw: Json, *names: str, default: bool) -> bool:
    value = _find(raw, names)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UnsupportedModelError(f"{names[0]} must be true or false, not {value!r}")
    return value


def _layers(raw: Json) -> tuple[LayerKind, ...]:
    pattern = _find(raw, ("layers_block_type", "layer_types", "hybrid_override_pattern"))
    known: dict[str, LayerKind | None]
    if isinstance(pattern, str):
        known = {kind.value: kind for kind in LayerKind} | {"E": None}
        names: list[object] = list(pattern)
    elif isinstance(pattern, list):
        known, names = _KIND_NAMES, pattern
    else:
        raise UnsupportedModelError(
            f"hybrid_override_pattern or layers_block_type is needed, not {pattern!r}"
        )
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UnsupportedModelError(f"unknown kind of layer {name!r}")
    kinds = [known[str(name)] for name in names]
    found = tuple(kind for kind in kinds if kind is not None)
    if len(found) < len(kinds):
        experts = len(kinds) - len(found)
        raise UnsupportedModelError(
            f"{experts} of {len(kinds)} layers are mixtures of experts, which are not supported yet"
        )
    if not found:
        raise UnsupportedModelError("the layer pattern is empty")
    return found


def _time_step_limit(raw: Json) -> tuple[float, float]:
    value = _find(raw, ("time_step_limit", "mamba_dt_limit"))
    if value is None:
        return (0.0, math.inf)
    if isinstance(value, list | tuple) and len(value) == 2:
        with contextlib.suppress(ValueError, OverflowError):
            low, high = (_real(each) for each in value)
            if low <= high:
                return (low, high)
    raise UnsupportedModelError(f"time_step_limit must be two numbers, the smaller first, not {value!r}")


def _real(value: object) -> float:
    """A number, infinite ones among them. Raises ValueError, and OverflowError."""
    # Recent transformers write {"__float__": "Infinity"} for the bare Infinity of older configs.
    if isinstance(value, dict) and "__float__" in value:
        return float(str(value["__float__"]))
    if not isinstance(value, int | float):
        raise ValueError("it is no number")
    return float(value)


def _end_token_ids(raw: Json) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise UnsupportedModelError(f"eos_token_id must be a token id or a list of them, not {value!r}")
    return tuple(ids)
