"""Calls of every Triton kernel at a model's shapes, on tensors without memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.published import HYBRID_9B
from kernels import triton_ops
from kernels.layout import PrefillIndex, Segment, step_layout
from worker.model.config import ModelConfig

NINE_B = ModelConfig.parse(HYBRID_9B)
BF16, FP32 = torch.bfloat16, torch.float32
PAGE = 32


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Shapes:
    """The arguments of one model's kernels, for one prompt of `tokens` or for decoding; strided as its
    network makes them.
    """

    tokens: int
    config: ModelConfig = NINE_B

    @property
    def hidden(self) -> int:
        return self.config.hidden_size

    @property
    def heads(self) -> int:
        return self.config.mamba_heads

    @property
    def groups(self) -> int:
        return self.config.groups

    @property
    def mlp(self) -> int:
        return self.config.mlp_size

    @property
    def inner(self) -> int:
        return self.config.inner_size

    @property
    def channels(self) -> int:
        return self.config.conv_size

    def projected(self) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self.inner, self.channels, self.heads]
        z, xbc, dt = empty(self.tokens, sum(parts)).split(parts, dim=-1)
        return z, xbc, dt

    def scan(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        bc = self.groups * self.config.state_size
        x, b, c = empty(self.tokens, self.channels).split([self.inner, bc, bc], dim=-1)
        dt = empty(self.tokens, self.heads, dtype=FP32)
        per_head = empty(self.heads, dtype=FP32)
        grouped = (self.groups, self.config.state_size)
        x = x.unflatten(-1, (self.heads, self.config.mamba_head_dim))
        return x, dt, per_head, b.unflatten(-1, grouped), c.unflatten(-1, grouped), per_head

    def states(self, dtype: torch.dtype = FP32) -> Tensor:
        config = self.config
        return empty(9, self.heads, config.mamba_head_dim, config.state_size, dtype=dtype)

    def heads_of_attention(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = empty(self.tokens, 56, 128).split([40, 8, 8], dim=1)
        return q, k, v

    def index(self) -> PrefillIndex:
        pages = range(-(-self.tokens // PAGE))
        layout = step_layout(
            [],
            [Segment(0, 0, self.tokens, pages)],
            page_tokens=PAGE,
            chunk=128,
            window=4,
            device=torch.device("cpu"),
        )
        assert layout.prefill is not None
        return layout.prefill


def calls(prefill: Shapes, decode: Shapes) -> dict[str, Callable[[], object]]:
    """Every operation: prefill with one prompt, decoding with as many sequences as `decode` has tokens."""
    slot, ids = empty(1, dtype=torch.int64), empty(decode.tokens, dtype=torch.int64)
    kv = empty(100, PAGE, 8, 128)
    x, z = empty(prefill.tokens, prefill.hidden), prefill.projected()[0]
    conv = (empty(4, prefill.channels), empty(prefill.channels), empty(9, 3, prefill.channels))
    eps = 1e-5

    def exact(size: int) -> Tensor:
        return empty(size, dtype=FP32)

    def quantised(at: Shapes, dtype: torch.dtype, outputs: int, inputs: int) -> object:
        weight, scales = empty(outputs, inputs, dtype=dtype), exact(outputs)
        return triton_ops.quantised_linear(empty(at.tokens, inputs), weight, scales, None)

    def full(at: Shapes, outputs: int, inputs: int) -> object:
        return triton_ops.linear(empty(at.tokens, inputs), empty(outputs, inputs).t(), None)

    # in_proj has the most outputs, down_proj the fewest, and inputs that are no multiple of a tile.
    in_proj = (decode.inner + decode.channels + decode.heads, decode.hidden)
    down_proj = (decode.hidden, decode.mlp)

    return {
        "add_rms_norm": lambda: triton_ops.add_rms_norm(x, x, exact(prefill.hidden), eps),
        "gated_group_norm": lambda: triton_ops.gated_group_norm(
            empty(prefill.tokens, prefill.inner), z, exact(prefill.inner), eps, prefill.groups
        ),
        "conv_prefill": lambda: triton_ops.conv_prefill(prefill.projected()[1], *conv, slot, prefill.index()),
        "conv_update": lambda: triton_ops.conv_update(decode.projected()[1], *conv, ids),
        "scan_prefill": lambda: triton_ops.scan_prefill(
            *prefill.scan(), prefill.states(), slot, prefill.index()
        ),
        "scan_update": lambda: triton_ops.scan_update(*decode.scan(), decode.states(), ids),
        "scan_update of bf16 states": lambda: triton_ops.scan_update(
            *decode.scan(), decode.states(BF16), ids
        ),
        "store_kv": lambda: triton_ops.store_kv(*decode.heads_of_attention()[1:], kv, kv, ids),
        "attention_decode": lambda: triton_ops.attention_decode(
            decode.heads_of_attention()[0], kv, kv, empty(decode.tokens, 4096, dtype=torch.int64), ids
        ),
        "attention_prefill": lambda: triton_ops.attention_prefill(
            *prefill.heads_of_attention(), kv, kv, (), prefill.index()
        ),
        **{
            f"quantised_linear, {name}, {use}": partial(quantised, at, dtype, *shape)
            for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn))
            for use, at, shape in (
                ("in_proj of 8", replace(decode, tokens=8), in_proj),
                ("in_proj in decode", decode, in_proj),
                ("down_proj in decode", decode, down_proj),
                ("down_proj of 128", replace(decode, tokens=128), down_proj),
                ("down_proj in prefill", prefill, down_proj),
            )
        },
        **{
            f"linear, {use}": partial(full, at, *shape)
            for use, at, shape in (
                ("in_proj of 8", replace(decode, tokens=8), in_proj),
                ("in_proj in decode", decode, in_proj),
                ("down_proj in decode", decode, down_proj),
            )
        },
        "relu2": lambda: triton_ops.relu2(empty(prefill.tokens, prefill.mlp)),
        "sample": lambda: triton_ops.sample(
            empty(decode.tokens, 131072, dtype=FP32), *[exact(decode.tokens)] * 5
        ),
        "time_steps": lambda: triton_ops.time_steps(
            prefill.projected()[2], exact(prefill.heads), 0.0, math.inf
        ),
    }
