"""The hybrid network on packed tokens: Mamba-2, attention and MLP layers in any order.

Every layer is one mixer: h = h + mixer(norm(h)). The tokens of all sequences of a step lie side by side
(kernels.layout); what a sequence carries from step to step is in the pools (worker.model.pools).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import Kernels
from kernels.layout import StepLayout
from worker.model.config import LayerKind, ModelConfig
from worker.model.pools import Pools


class Tensors(Protocol):
    """A checkpoint's tensors by their published names, without the prefix `backbone.` or `model.`."""

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Returns the tensor, which has that shape, or raises."""


@dataclass(frozen=True, slots=True)
class MambaLayer:
    """Weights of a Mamba-2 mixer. C = conv channels, inner = heads × head_dim; in_proj gives [z inner | xBC C
    | dt heads]. dt_bias, a = −exp(A_log), d and norm are fp32 in a model of any type.
    """

    in_proj: Tensor
    in_bias: Tensor | None
    conv_weight: Tensor  # [K, C]
    conv_bias: Tensor | None
    dt_bias: Tensor
    a: Tensor
    d: Tensor
    norm: Tensor
    out_proj: Tensor
    out_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """Weights of an attention mixer: queries, keys and values in one projection."""

    qkv_proj: Tensor
    qkv_bias: Tensor | None
    out_proj: Tensor
    out_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MlpLayer:
    """Weights of an MLP mixer, down(relu(up(x))²)."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


Layer = MambaLayer | AttentionLayer | MlpLayer


class Network:
    """A model's weights, arranged for running, and its forward pass. Immutable once made."""

    def __init__(
        self, config: ModelConfig, tensors: Tensors, kernels: Kernels, *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Arranges the checkpoint's tensors, converted to `dtype` but for what must be fp32 (norms and the
        scan's parameters). Raises what `tensors` raises for missing or misshapen ones.
        """
        self.config = config
        self._kernels = kernels
        hidden, vocab = config.hidden_size, config.vocab_size
        self._embeddings = tensors("embeddings.weight", vocab, hidden).to(dtype)
        self._norms = [tensors(f"layers.{n}.norm.weight", hidden).float() for n in range(len(config.layers))]
        self._layers = [_layer(config, kind, n, tensors, dtype) for n, kind in enumerate(config.layers)]
        self._final_norm = tensors("norm_f.weight", hidden).float()
        self._head = (
            self._embeddings if config.tied_embeddings else tensors("lm_head.weight", vocab, hidden).to(dtype)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and the residual stream."""
        return self._embeddings.dtype

    @property
    def skips_padding(self) -> bool:
        """Whether a step may hold sequences without a slot, which fill up its batch (see Kernels)."""
        return self._kernels.skips_padding

    def hidden(self, token_ids: Tensor, layout: StepLayout, pools: Pools) -> Tensor:
        """Runs one step. token_ids [T] → normed hidden states [T, hidden]; slots and pages in `pools` are
        advanced.
        """
        kernels, eps = self._kernels, self.config.norm_eps
        x: Tensor = F.embedding(token_ids, self._embeddings)
        residual: Tensor | None = None
        conv, ssm, pages = iter(pools.conv), iter(pools.ssm), zip(pools.keys, pools.values, strict=True)
        for layer, norm in zip(self._layers, self._norms, strict=True):
            normed, residual = kernels.add_rms_norm(x, residual, norm, eps)
            if isinstance(layer, MambaLayer):
                x = self._mamba(layer, normed, layout, next(conv), next(ssm))
            elif isinstance(layer, AttentionLayer):
                x = self._attention(layer, normed, layout, *next(pages))
            else:
                up = F.linear(normed, layer.up, layer.up_bias)
                x = F.linear(kernels.relu2(up), layer.down, layer.down_bias)
        return kernels.add_rms_norm(x, residual, self._final_norm, eps)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [n, hidden] → logits [n, vocab] in fp32."""
        return F.linear(hidden, self._head).float()

    def _mamba(self, layer: MambaLayer, x: Tensor, layout: StepLayout, conv: Tensor, ssm: Tensor) -> Tensor:
        config, kernels, decodes = self.config, self._kernels, layout.decodes
        inner, channels = config.inner_size, config.conv_size
        bc = config.groups * config.state_size
        z, xbc, dt = F.linear(x, layer.in_proj, layer.in_bias).split(
            [inner, channels, config.mamba_heads], dim=-1
        )
        dt = kernels.time_steps(dt, layer.dt_bias, *config.time_step_limit)
        prefill = layout.prefill
        parts: list[Tensor] = []
        if decodes:
            slots = layout.slots[:decodes]
            mixed = kernels.conv_update(xbc[:decodes], layer.conv_weight, layer.conv_bias, conv, slots)
            parts.append(
                kernels.scan_update(*self._scan_inputs(mixed, dt[:decodes], layer, inner, bc), ssm, slots)
            )
        if prefill is not None:
            slots = layout.slots[decodes:]
            mixed = kernels.conv_prefill(
                xbc[decodes:], layer.conv_weight, layer.conv_bias, conv, slots, prefill
            )
            inputs = self._scan_inputs(mixed, dt[decodes:], layer, inner, bc)
            parts.append(kernels.scan_prefill(*inputs, ssm, slots, prefill))
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        normed = kernels.gated_group_norm(y.flatten(1), z, layer.norm, config.norm_eps, config.groups)
        return F.linear(normed, layer.out_proj, layer.out_bias)

    def _scan_inputs(
        self, xbc: Tensor, dt: Tensor, layer: MambaLayer, inner: int, bc: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Splits the convolved channels: (x [T, H, P], dt, a, B [T, G, N], C [T, G, N], d)."""
        x, b, c = xbc.split([inner, bc, bc], dim=-1)
        groups = self.config.groups
        heads = x.unflatten(-1, (self.config.mamba_heads, -1))
        return heads, dt, layer.a, b.unflatten(-1, (groups, -1)), c.unflatten(-1, (groups, -1)), layer.d

    def _attention(
        self, layer: AttentionLayer, x: Tensor, layout: StepLayout, k_pages: Tensor, v_pages: Tensor
    ) -> Tensor:
        config, kernels, decodes = self.config, self._kernels, layout.decodes
        heads = F.linear(x, layer.qkv_proj, layer.qkv_bias).unflatten(-1, (-1, config.head_dim))
        q, k, v = heads.split([config.query_heads, config.kv_heads, config.kv_heads], dim=1)
        kernels.store_kv(k, v, k_pages, v_pages, layout.rows)
        parts: list[Tensor] = []
        if decodes:
            parts.append(
                kernels.attention_decode(q[:decodes], k_pages, v_pages, layout.page_table, layout.context)
            )
        if layout.prefill is not None:
            q, k, v = q[decodes:], k[decodes:], v[decodes:]
            parts.append(
                kernels.attention_prefill(q, k, v, k_pages, v_pages, layout.piece_pages, layout.prefill)
            )
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.linear(y.flatten(1), layer.out_proj, layer.out_bias)


def _layer(config: ModelConfig, kind: LayerKind, number: int, tensors: Tensors, dtype: torch.dtype) -> Layer:
    hidden, inner, channels = config.hidden_size, config.inner_size, config.conv_size
    heads = config.mamba_heads

    def exact(name: str, *shape: int) -> Tensor:
        return tensors(f"layers.{number}.mixer.{name}", *shape).float()

    def need(name: str, *shape: int) -> Tensor:
        return tensors(f"layers.{number}.mixer.{name}", *shape).to(dtype)

    def bias(name: str, size: int, present: bool) -> Tensor | None:
        return need(f"{name}.bias", size) if present else None

    match kind:
        case LayerKind.MAMBA:
            projected = inner + channels + heads
            return MambaLayer(
                in_proj=need("in_proj.weight", projected, hidden),
                in_bias=bias("in_proj", projected, config.mamba_bias),
                conv_weight=need("conv1d.weight", channels, 1, config.conv_kernel)[:, 0].t().contiguous(),
                conv_bias=bias("conv1d", channels, config.conv_bias),
                dt_bias=exact("dt_bias", heads),
                a=-torch.exp(exact("A_log", heads)),
                d=exact("D", heads),
                norm=exact("norm.weight", inner),
                out_proj=need("out_proj.weight", hidden, inner),
                out_bias=bias("out_proj", hidden, config.mamba_bias),
            )
        case LayerKind.ATTENTION:
            q_size, kv_size = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
            inputs = (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size))
            return AttentionLayer(
                qkv_proj=torch.cat([need(f"{name}.weight", size, hidden) for name, size in inputs]),
                qkv_bias=torch.cat([need(f"{name}.bias", size) for name, size in inputs])
                if config.attention_bias
                else None,
                out_proj=need("o_proj.weight", hidden, q_size),
                out_bias=bias("o_proj", hidden, config.attention_bias),
            )
        case LayerKind.MLP:
            return MlpLayer(
                up=need("up_proj.weight", config.mlp_size, hidden),
                up_bias=bias("up_proj", config.mlp_size, config.mlp_bias),
                down=need("down_proj.weight", hidden, config.mlp_size),
                down_bias=bias("down_proj", hidden, config.mlp_bias),
            )
