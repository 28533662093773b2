"""Every kernel on fresh random inputs at the model's shapes, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import references
from benchmarks.gpu.shapes import Inputs, page_count
from kernels import Kernels
from worker.model.linear import QuantisedLinear, WeightFormat

_EPS = 1e-5
# Largest error, as a share of the largest number of the result, that rounding explains: operands of the
# scan's and the attention's products are rounded to the model's type, sums are in fp32.
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
# Share of the mass by which a drawn token must be clear of any border.
_CLEAR = 1e-6
_QUANTISED = (WeightFormat.INT8, WeightFormat.FP8)
_SPANS = {
    "one piece": [(0, 300)],
    "many pieces": [(0, 1), (130, 64), (127, 2), (5, 150), (256, 128)],
}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. error: the largest difference, as a share of the largest number."""

    name: str
    dtype: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is explained by rounding; a result that is not a number is not."""
        return self.error <= self.tolerance


Comparison = tuple[str, Tensor, Tensor]


def checks(kernels: Kernels, inputs: Inputs) -> list[Callable[[], Iterator[Check]]]:
    """Checks of every kernel in the inputs' type, and in fp32 of those without matrix products: tensor cores
    do not take fp32, and tiles for bf16 would spill all their registers.
    """
    found: list[Callable[[], Iterator[Check]]] = []
    for dtype in dict.fromkeys((torch.float32, inputs.dtype)):
        typed = replace(inputs, dtype=dtype)
        comparisons = [_norms, _convolutions, _elementwise]
        if dtype == inputs.dtype:
            comparisons += [_scans, _attention, _linears]
            comparisons += [partial(_quantised, weights=weights) for weights in _QUANTISED]
        found += [partial(_check, compare, kernels, typed) for compare in comparisons]
    return [*found, partial(_choices, kernels, inputs)]


def _check(
    compare: Callable[[Kernels, Inputs], Iterator[Comparison]], kernels: Kernels, inputs: Inputs
) -> Iterator[Check]:
    for name, got, exact in compare(kernels, inputs):
        scale = exact.abs().max().clamp(min=1e-30)
        error = float((got.double() - exact).abs().max() / scale)
        yield Check(name, str(inputs.dtype).removeprefix("torch."), error, _TOLERANCE[inputs.dtype])


def _norms(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    hidden, inner, groups = inputs.config.hidden_size, inputs.config.inner_size, inputs.config.groups
    x, residual = inputs.random(37, hidden), inputs.random(37, hidden)
    weight = inputs.random(hidden, dtype=torch.float32)
    normed, total = kernels.add_rms_norm(x, residual, weight, _EPS)
    yield "add_rms_norm", normed, references.rms_norm(x + residual, weight, _EPS)
    yield "add_rms_norm: sum", total, (x + residual).double()
    y, z = inputs.random(37, inner), inputs.projected(37)[0]
    weight = inputs.random(inner, dtype=torch.float32)
    yield (
        "gated_group_norm",
        kernels.gated_group_norm(y, z, weight, _EPS, groups),
        references.gated_group_norm(y, z, weight, _EPS, groups),
    )


def _convolutions(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    weight, bias = inputs.conv_weights()
    for packing, spans in _SPANS.items():
        layout, index = inputs.prefill(spans)
        states = inputs.conv_states(len(spans))
        before = states.clone()
        xbc = inputs.projected(layout.tokens)[1]
        y = kernels.conv_prefill(xbc, weight, bias, states, layout.slots, index)
        exact = [
            references.convolve(x, weight, bias, history)
            for x, history in zip(xbc.split(list(index.lengths)), before, strict=True)
        ]
        yield f"conv_prefill, {packing}", y, torch.cat([out for out, _ in exact])
        yield f"conv_prefill, {packing}: states", states, torch.stack([state for _, state in exact])
    states, slots = inputs.conv_states(5), torch.tensor([3, 0, 4], device=inputs.device)
    before = states.clone()
    xbc = inputs.projected(3)[1]
    y = kernels.conv_update(xbc, weight, bias, states, slots)
    exact = [
        references.convolve(xbc[n : n + 1], weight, bias, before[slot])
        for n, slot in enumerate(slots.tolist())
    ]
    yield "conv_update", y, torch.cat([out for out, _ in exact])
    yield "conv_update: states", states[slots], torch.stack([state for _, state in exact])


def _scans(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    for packing, spans in _SPANS.items():
        layout, index = inputs.prefill(spans)
        arguments, states = inputs.scan(layout.tokens), inputs.states(len(spans))
        before = states.clone()
        y = kernels.scan_prefill(*arguments, states, layout.slots, index)
        exact = [_scan(arguments, before[n], part) for n, part in enumerate(_parts(index.lengths))]
        yield f"scan_prefill, {packing}", y, torch.cat([out for out, _ in exact])
        yield f"scan_prefill, {packing}: states", states, torch.stack([state for _, state in exact])
    slots = torch.tensor([3, 0, 4], device=inputs.device)
    for dtype in dict.fromkeys((torch.float32, inputs.dtype)):
        arguments, states = inputs.scan(3), inputs.states(5, dtype)
        before = states.clone()
        y = kernels.scan_update(*arguments, states, slots)
        exact = [_scan(arguments, before[slot], slice(n, n + 1)) for n, slot in enumerate(slots.tolist())]
        name = f"scan_update, {str(dtype).removeprefix('torch.')} states"
        yield name, y, torch.cat([out for out, _ in exact])
        yield f"{name}: states", states[slots], torch.stack([state for _, state in exact])


def _scan(arguments: tuple[Tensor, ...], state: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    x, dt, a, b, c, d = arguments
    return references.scan(x[part], dt[part], a, b[part], c[part], d, state)


def _parts(lengths: tuple[int, ...]) -> Iterator[slice]:
    first = 0
    for length in lengths:
        yield slice(first, first + length)
        first += length


def _attention(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    contexts = [1, 33, 700, 64]
    for spans, name in [*((spans, packing) for packing, spans in _SPANS.items()), ([], "decode")]:
        lengths = [sum(span) for span in spans] or contexts
        layout = inputs.prefill(spans)[0] if spans else inputs.decodes(contexts)
        k_pages, v_pages = inputs.pages(page_count(lengths)), inputs.pages(page_count(lengths))
        q, k, v = inputs.heads(layout.tokens)
        kernels.store_kv(k, v, k_pages, v_pages, layout.rows)
        for kind, new, pages in (("keys", k, k_pages), ("values", v, v_pages)):
            yield f"store_kv, {name}: {kind}", pages.flatten(0, 1)[layout.rows], new.double()
        if layout.prefill is not None:
            got = kernels.attention_prefill(q, k, v, k_pages, v_pages, layout.piece_pages, layout.prefill)
            tables, counts = list(layout.piece_pages), list(layout.prefill.lengths)
        else:
            got = kernels.attention_decode(q, k_pages, v_pages, layout.page_table, layout.context)
            tables, counts = list(layout.page_table), [1] * len(contexts)
        exact = [
            references.attend(
                part, k_pages[table].flatten(0, 1)[:length], v_pages[table].flatten(0, 1)[:length]
            )
            for part, table, length in zip(q.split(counts), tables, lengths, strict=True)
        ]
        yield f"attention, {name}", got, torch.cat(exact)


def _linears(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    for name, weight in inputs.projections().items():
        for tokens in (1, 20, 32, 33):
            x = inputs.random(tokens, weight.shape[1])
            yield (
                f"linear, {name}, {tokens}",
                kernels.linear(x, weight.t(), None),
                x.double() @ weight.double().t(),
            )


def _quantised(kernels: Kernels, inputs: Inputs, *, weights: WeightFormat) -> Iterator[Comparison]:
    for name, weight in inputs.projections().items():
        found = QuantisedLinear.prepare(weight, None, weights, kernels)
        # Each tile, and a part of one.
        for tokens in (1, 20, 50, 100, 130, 400):
            x = inputs.random(tokens, weight.shape[1])
            exact = references.quantised_linear(x, found.weight, found.scales)
            yield f"quantised_linear, {weights.value}, {name}, {tokens}", found(x), exact


def _choices(kernels: Kernels, inputs: Inputs) -> Iterator[Check]:
    """The error is the share of tokens that are not those of a sort in float64, of what no rounding of the
    sums can change.
    """
    logits, rules = inputs.logits(256), inputs.sampling(256)
    temperature, top_p, top_k, random = rules
    for name, given_p, given_k in (
        ("temperature", None, None),
        ("top_p", top_p, None),
        ("top_k", None, top_k),
        ("top_p and top_k", top_p, top_k),
    ):
        got = kernels.sample(logits, temperature, given_p, given_k, None, random)
        whole, none = torch.ones_like(temperature), torch.zeros_like(temperature)
        exact, margin = references.sample(
            logits,
            temperature,
            whole if given_p is None else given_p,
            none if given_k is None else given_k,
            random,
        )
        clear = margin > _CLEAR
        wrong = float(((got != exact) & clear).sum() / clear.sum().clamp(min=1))
        yield Check(f"sample, {name}: {int(clear.sum())} clear of 256", "float32", wrong, 0.0)


def _elementwise(kernels: Kernels, inputs: Inputs) -> Iterator[Comparison]:
    x = inputs.random(33, inputs.config.mlp_size)
    yield "relu2", kernels.relu2(x), torch.relu(x.double()).square()
    dt = inputs.projected(33)[2] * 8
    bias = inputs.random(inputs.config.mamba_heads, dtype=torch.float32)
    yield "time_steps", kernels.time_steps(dt, bias, 0.0, math.inf), F.softplus((dt.float() + bias).double())
