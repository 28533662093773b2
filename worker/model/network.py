"""The hybrid network on packed tokens: Mamba-2, attention and MLP layers in any order.

Every layer is one mixer: h = h + mixer(norm(h)). The tokens of all sequences of a step lie side by side
(kernels.layout); what a sequence carries from step to step is in the pools (worker.model.pools).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kernels import Kernels
from kernels.layout import PrefillIndex, StepLayout
from worker.model.config import LayerKind, ModelConfig
from worker.model.linear import Linear, Projection, WeightFormat, projection
from worker.model.parts import tensors_of, with_tensors
from worker.model.pools import Pools


class Tensors(Protocol):
    """A checkpoint's tensors by their published names, without the prefix `backbone.` or `model.`."""

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Returns the tensor, which has that shape, or raises."""


@dataclass(frozen=True, slots=True)
class MambaLayer:
    """Weights of a Mamba-2 mixer. C = conv channels, inner = heads × head_dim; in_proj gives [z inner | xBC C
    | dt heads]. Norms, dt_bias, a = −exp(A_log) and d are fp32 in a model of any type.
    """

    norm: Tensor
    in_proj: Projection
    conv_weight: Tensor  # [K, C]
    conv_bias: Tensor | None
    dt_bias: Tensor
    a: Tensor
    d: Tensor
    gated_norm: Tensor
    out_proj: Projection


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """Weights of an attention mixer: queries, keys and values in one projection."""

    norm: Tensor
    qkv_proj: Projection
    out_proj: Projection


@dataclass(frozen=True, slots=True)
class MlpLayer:
    """Weights of an MLP mixer, down(relu(up(x))²)."""

    norm: Tensor
    up: Projection
    down: Projection


Layer = MambaLayer | AttentionLayer | MlpLayer


class Network:
    """A model's weights, arranged for running, and its forward pass. Immutable once made."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        kernels: Kernels,
        *,
        dtype: torch.dtype = torch.float32,
        weights: WeightFormat = WeightFormat.FULL,
    ) -> None:
        """Arranges the checkpoint's tensors, converted to `dtype` but for what must be fp32 (norms and the
        scan's parameters) and for the layers' projections, which are held as `weights` says. Raises what
        `tensors` raises for missing or misshapen ones.
        """
        self.config = config
        self.weights = weights
        self._kernels = kernels
        project = partial(projection, weights=weights, kernels=kernels)
        hidden, vocab = config.hidden_size, config.vocab_size
        self._embeddings = tensors("embeddings.weight", vocab, hidden).to(dtype)
        norms = [tensors(f"layers.{n}.norm.weight", hidden).float() for n in range(len(config.layers))]
        self._layers = [
            _layer(config, kind, n, norm, tensors, dtype, project)
            for n, (kind, norm) in enumerate(zip(config.layers, norms, strict=True))
        ]
        self._final_norm = tensors("norm_f.weight", hidden).float()
        head = self._embeddings if config.tied_embeddings else tensors("lm_head.weight", vocab, hidden)
        self._head = Linear.prepare(head.to(dtype), None, kernels)
        inner, channels, bc = config.inner_size, config.conv_size, config.groups * config.state_size
        self._projected = [inner, channels, config.mamba_heads]  # z, xBC, dt
        self._convolved = [inner, bc, bc]  # x, B, C
        self._attended = [config.query_heads, config.kv_heads, config.kv_heads]  # heads of q, k, v

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the residual stream, and of all weights that are not quantised."""
        return self._embeddings.dtype

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that it holds, each once."""
        yield from (self._embeddings, self._final_norm)
        for layer in self._layers:
            yield from tensors_of(layer)
        if not self.config.tied_embeddings:
            yield self._head.weight

    def parameters(self) -> list[Tensor]:
        """The weights as `rebuilt` takes them, in an order that the model's shape decides."""
        return list(tensors_of(self._parts))

    def rebuilt(self, parameters: Iterable[Tensor], kernels: Kernels) -> Network:
        """A network like this one over other weights and other kernels."""
        network = copy(self)
        network._kernels = kernels
        network._embeddings, network._layers, network._final_norm, network._head = with_tensors(
            self._parts, iter(parameters)
        )
        return network

    @property
    def _parts(self) -> tuple[Tensor, list[Layer], Tensor, Linear]:
        return self._embeddings, self._layers, self._final_norm, self._head

    @property
    def skips_padding(self) -> bool:
        """Whether a step may hold sequences without a slot, which fill up its batch (see Kernels)."""
        return self._kernels.skips_padding

    def hidden(
        self, token_ids: Tensor, layout: StepLayout, pools: Pools, *, captured: bool = False
    ) -> Tensor:
        """Runs one step. token_ids [T] → normed hidden states [T, hidden]; slots and pages in `pools` are
        advanced. captured: the step is made for a graph, in which launches take the host no time.
        """
        kernels, eps = self._kernels, self.config.norm_eps
        x = self._embeddings.index_select(0, token_ids)
        residual: Tensor | None = None
        conv, ssm, pages = iter(pools.conv), iter(pools.ssm), zip(pools.keys, pools.values, strict=True)
        for layer in self._layers:
            normed, residual = kernels.add_rms_norm(x, residual, layer.norm, eps)
            if isinstance(layer, MambaLayer):
                x = self._mamba(layer, normed, layout, next(conv), next(ssm), captured)
            elif isinstance(layer, AttentionLayer):
                x = self._attention(layer, normed, layout, *next(pages), captured)
            else:
                x = layer.down(kernels.relu2(layer.up(normed, captured)), captured)
        return kernels.add_rms_norm(x, residual, self._final_norm, eps)[0]

    def logits(self, hidden: Tensor, out: Tensor | None = None, *, captured: bool = False) -> Tensor:
        """Normed hidden states [n, hidden] → logits [n, vocab] in fp32. out: where to put them. captured: as
        in `hidden`.
        """
        logits = self._head(hidden, captured)
        return logits.float() if out is None else out.copy_(logits)

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_p: Tensor | None,
        top_k: Tensor | None,
        min_p: Tensor | None,
        random: Tensor,
    ) -> Tensor:
        """Chooses a token from each row of logits: see `kernels.torch_ops.sampling`."""
        return self._kernels.sample(logits, temperature, top_p, top_k, min_p, random)

    def _mamba(
        self, layer: MambaLayer, x: Tensor, layout: StepLayout, conv: Tensor, ssm: Tensor, captured: bool
    ) -> Tensor:
        config, kernels, slots = self.config, self._kernels, layout.slots
        z, xbc, dt = layer.in_proj(x, captured).split_with_sizes(self._projected, -1)
        dt = kernels.time_steps(dt, layer.dt_bias, *config.time_step_limit)
        cut = layout.decodes
        if layout.prefill is None or cut == 0:
            y = self._advance(layer, xbc, dt, conv, ssm, slots, layout.prefill)
        else:
            decoded = self._advance(layer, xbc[:cut], dt[:cut], conv, ssm, slots[:cut], None)
            prefilled = self._advance(layer, xbc[cut:], dt[cut:], conv, ssm, slots[cut:], layout.prefill)
            y = torch.cat([decoded, prefilled])
        normed = kernels.gated_group_norm(
            y.view(z.shape), z, layer.gated_norm, config.norm_eps, config.groups
        )
        return layer.out_proj(normed, captured)

    def _advance(
        self,
        layer: MambaLayer,
        xbc: Tensor,
        dt: Tensor,
        conv: Tensor,
        ssm: Tensor,
        slots: Tensor,
        index: PrefillIndex | None,
    ) -> Tensor:
        """Convolution and scan of prefill pieces, or of decodes when there is no index of pieces."""
        kernels, config, tokens = self._kernels, self.config, xbc.shape[0]
        if index is None:
            mixed = kernels.conv_update(xbc, layer.conv_weight, layer.conv_bias, conv, slots)
        else:
            mixed = kernels.conv_prefill(xbc, layer.conv_weight, layer.conv_bias, conv, slots, index)
        x, b, c = mixed.split_with_sizes(self._convolved, -1)
        x = x.view(tokens, config.mamba_heads, -1)
        b, c = b.view(tokens, config.groups, -1), c.view(tokens, config.groups, -1)
        if index is None:
            return kernels.scan_update(x, dt, layer.a, b, c, layer.d, ssm, slots)
        return kernels.scan_prefill(x, dt, layer.a, b, c, layer.d, ssm, slots, index)

    def _attention(
        self,
        layer: AttentionLayer,
        x: Tensor,
        layout: StepLayout,
        k_pages: Tensor,
        v_pages: Tensor,
        captured: bool,
    ) -> Tensor:
        config, kernels, cut, index = self.config, self._kernels, layout.decodes, layout.prefill
        heads = layer.qkv_proj(x, captured).view(layout.tokens, -1, config.head_dim)
        q, k, v = heads.split_with_sizes(self._attended, 1)
        kernels.store_kv(k, v, k_pages, v_pages, layout.rows)
        parts: list[Tensor] = []
        if cut:
            decoded = q if index is None else q[:cut]
            parts.append(
                kernels.attention_decode(decoded, k_pages, v_pages, layout.page_table, layout.context)
            )
        if index is not None:
            q, k, v = q[cut:], k[cut:], v[cut:]
            parts.append(kernels.attention_prefill(q, k, v, k_pages, v_pages, layout.piece_pages, index))
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return layer.out_proj(y.flatten(1), captured)


def _layer(
    config: ModelConfig,
    kind: LayerKind,
    number: int,
    norm: Tensor,
    tensors: Tensors,
    dtype: torch.dtype,
    project: Callable[[Tensor, Tensor | None], Projection],
) -> Layer:
    hidden, inner, channels = config.hidden_size, config.inner_size, config.conv_size
    heads = config.mamba_heads

    def exact(name: str, *shape: int) -> Tensor:
        return tensors(f"layers.{number}.mixer.{name}", *shape).float()

    def need(name: str, *shape: int) -> Tensor:
        return tensors(f"layers.{number}.mixer.{name}", *shape).to(dtype)

    def linear(outputs: dict[str, int], inputs: int, bias: bool) -> Projection:
        """Projections by name and width, side by side."""
        weights = [need(f"{name}.weight", size, inputs) for name, size in outputs.items()]
        biases = [need(f"{name}.bias", size) for name, size in outputs.items()] if bias else []
        return project(
            torch.cat(weights) if len(weights) > 1 else weights[0], torch.cat(biases) if biases else None
        )

    match kind:
        case LayerKind.MAMBA:
            biased = config.mamba_bias
            return MambaLayer(
                norm=norm,
                in_proj=linear({"in_proj": inner + channels + heads}, hidden, biased),
                conv_weight=need("conv1d.weight", channels, 1, config.conv_kernel)[:, 0].t().contiguous(),
                conv_bias=need("conv1d.bias", channels) if config.conv_bias else None,
                dt_bias=exact("dt_bias", heads),
                a=-torch.exp(exact("A_log", heads)),
                d=exact("D", heads),
                gated_norm=exact("norm.weight", inner),
                out_proj=linear({"out_proj": hidden}, inner, biased),
            )
        case LayerKind.ATTENTION:
            biased = config.attention_bias
            q_size, kv_size = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
            return AttentionLayer(
                norm=norm,
                qkv_proj=linear({"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}, hidden, biased),
                out_proj=linear({"o_proj": hidden}, q_size, biased),
            )
        case LayerKind.MLP:
            biased = config.mlp_bias
            return MlpLayer(
                norm=norm,
                up=linear({"up_proj": config.mlp_size}, hidden, biased),
                down=linear({"down_proj": hidden}, config.mlp_size, biased),
            )
