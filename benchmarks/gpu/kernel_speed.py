"""Each kernel's time beside what its bytes take at copy speed, or its operations at the matrix peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.measure import Roofs, kernel_s
from benchmarks.gpu.shapes import Inputs, page_count
from kernels import Kernels
from worker.model.linear import QuantisedLinear, WeightFormat

Prepare = Callable[[Kernels], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size. moved: bytes that it must read and write. operations: those of its products.

    prepare: makes inputs, and returns the call for one implementation. peers: implementations to measure
    beside Triton.
    """

    name: str
    moved: float
    operations: float
    prepare: Prepare
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """What to measure. contexts: (sequences, tokens that each attends to). packed: pieces of one step."""

    sequences: tuple[int, ...] = (1, 8, 32, 128)
    contexts: tuple[tuple[int, int], ...] = ((1, 8192), (1, 131072), (32, 1024), (32, 8192), (128, 1024))
    tokens: tuple[int, ...] = (1024, 8192)
    packed: tuple[int, ...] = (256,) * 32


def cases(inputs: Inputs, *, sizes: Sizes) -> Iterator[Case]:
    """All cases. Decoding sizes are sequences, prefill sizes tokens of one sequence."""
    for sequences in sizes.sequences:
        yield _norm(inputs, sequences)
        yield _gated(inputs, sequences)
        yield _conv_update(inputs, sequences)
        yield _scan_update(inputs, sequences, torch.float32)
        yield _scan_update(inputs, sequences, torch.bfloat16)
    for sequences, context in sizes.contexts:
        yield _attention_decode(inputs, sequences, context)
    for tokens in sizes.tokens:
        yield _norm(inputs, tokens)
        yield _gated(inputs, tokens)
        yield _conv_prefill(inputs, tokens)
        yield _scan_prefill(inputs, [tokens])
        yield _attention_prefill(inputs, tokens)
        yield _relu2(inputs, tokens)
    yield _scan_prefill(inputs, list(sizes.packed))
    for sequences in sizes.sequences:
        yield _sample(inputs, sequences)
    yield from _linears(inputs, sizes)


@dataclass(frozen=True, slots=True)
class Timing:
    """One measurement. of_roof: the roof's time as a share of the time taken."""

    name: str
    kernels: str
    time_us: float
    gb_per_s: float
    of_roof: float
    roof: str


def measure(case: Case, kernels: Kernels, roofs: Roofs, device: torch.device) -> Timing:
    """Times one implementation."""
    taken_s = kernel_s(case.prepare(kernels), device)
    by_copy, by_matrix = case.moved / roofs.copy, case.operations / roofs.matrix
    return Timing(
        name=case.name,
        kernels=kernels.name,
        time_us=taken_s * 1e6,
        gb_per_s=case.moved / taken_s / 1e9,
        of_roof=max(by_copy, by_matrix) / taken_s,
        roof="copy" if by_copy >= by_matrix else "matrix",
    )


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _norm(inputs: Inputs, tokens: int) -> Case:
    hidden = inputs.config.hidden_size
    x, residual = inputs.random(tokens, hidden), inputs.random(tokens, hidden)
    weight = inputs.random(hidden, dtype=torch.float32)
    return Case(
        f"add_rms_norm {tokens}",
        4 * _bytes(x),
        0,
        lambda kernels: lambda: kernels.add_rms_norm(x, residual, weight, 1e-5),
    )


def _gated(inputs: Inputs, tokens: int) -> Case:
    inner, groups = inputs.config.inner_size, inputs.config.groups
    y, z = inputs.random(tokens, inner), inputs.projected(tokens)[0]
    weight = inputs.random(inner, dtype=torch.float32)
    return Case(
        f"gated_group_norm {tokens}",
        3 * _bytes(y),
        0,
        lambda kernels: lambda: kernels.gated_group_norm(y, z, weight, 1e-5, groups),
    )


def _conv_update(inputs: Inputs, sequences: int) -> Case:
    weight, bias = inputs.conv_weights()
    xbc, states = inputs.projected(sequences)[1], inputs.conv_states(sequences)
    slots = torch.randperm(sequences, device=inputs.device)
    return Case(
        f"conv_update {sequences}",
        2 * _bytes(xbc, states),
        0,
        lambda kernels: lambda: kernels.conv_update(xbc, weight, bias, states, slots),
    )


def _scan_update(inputs: Inputs, sequences: int, dtype: torch.dtype) -> Case:
    arguments, states = inputs.scan(sequences), inputs.states(sequences, dtype)
    slots = torch.randperm(sequences, device=inputs.device)
    x, dt, _, b, c, _ = arguments
    return Case(
        f"scan_update {sequences} {'fp32' if dtype == torch.float32 else 'bf16'} states",
        2 * _bytes(states, x) + _bytes(dt, b, c),
        0,
        lambda kernels: lambda: kernels.scan_update(*arguments, states, slots),
        peers=("mamba_ssm",),
    )


def _attention_decode(inputs: Inputs, sequences: int, context: int) -> Case:
    layout = inputs.decodes([context] * sequences)
    k_pages, v_pages = (inputs.pages(page_count([context] * sequences)) for _ in range(2))
    q = inputs.heads(sequences)[0]
    return Case(
        f"attention_decode {sequences} × {context}",
        _bytes(k_pages, v_pages) + 2 * _bytes(q),
        4 * q.numel() * context,
        lambda kernels: (
            lambda: kernels.attention_decode(q, k_pages, v_pages, layout.page_table, layout.context)
        ),
    )


def _conv_prefill(inputs: Inputs, tokens: int) -> Case:
    weight, bias = inputs.conv_weights()
    layout, index = inputs.prefill([(0, tokens)])
    xbc, states = inputs.projected(tokens)[1], inputs.conv_states(1)
    return Case(
        f"conv_prefill {tokens}",
        2 * _bytes(xbc),
        0,
        lambda kernels: lambda: kernels.conv_prefill(xbc, weight, bias, states, layout.slots, index),
    )


def _scan_prefill(inputs: Inputs, lengths: list[int]) -> Case:
    layout, index = inputs.prefill([(0, length) for length in lengths])
    arguments, states = inputs.scan(layout.tokens), inputs.states(len(lengths))
    x, dt, _, b, c, _ = arguments
    config = inputs.config
    # Of a chunk of Q tokens: scores and their product with x below the diagonal, and the state in and out.
    chunk, state = config.chunk_size, config.mamba_head_dim * config.state_size
    per_head = chunk * (config.mamba_head_dim + config.state_size) + 4 * state
    return Case(
        f"scan_prefill {len(lengths)} × {lengths[0]}",
        2 * _bytes(x, states) + _bytes(dt, b, c),
        layout.tokens * config.mamba_heads * per_head,
        lambda kernels: lambda: kernels.scan_prefill(*arguments, states, layout.slots, index),
        peers=("mamba_ssm",),
    )


def _attention_prefill(inputs: Inputs, tokens: int) -> Case:
    layout, index = inputs.prefill([(0, tokens)])
    k_pages, v_pages = (inputs.pages(page_count([tokens])) for _ in range(2))
    q, k, v = inputs.heads(tokens)
    return Case(
        f"attention_prefill {tokens}",
        2 * _bytes(q, k),
        2 * q.numel() * tokens,
        lambda kernels: (
            lambda: kernels.attention_prefill(q, k, v, k_pages, v_pages, layout.piece_pages, index)
        ),
        peers=("torch",),
    )


def _relu2(inputs: Inputs, tokens: int) -> Case:
    x = inputs.random(tokens, inputs.config.mlp_size)
    return Case(f"relu2 {tokens}", 2 * _bytes(x), 0, lambda kernels: lambda: kernels.relu2(x))


def _sample(inputs: Inputs, sequences: int) -> Case:
    logits, (temperature, top_p, _, random) = inputs.logits(sequences), inputs.sampling(sequences)
    return Case(
        f"sample with top_p {sequences}",
        _bytes(logits),
        0,
        lambda kernels: lambda: kernels.sample(logits, temperature, top_p, None, None, random),
        peers=("torch",),
    )


def _linears(inputs: Inputs, sizes: Sizes) -> Iterator[Case]:
    """Products with a weight in full, and quantised."""
    for name, weight in inputs.projections().items():
        for tokens in (*sizes.sequences, *sizes.tokens):
            x = inputs.random(tokens, weight.shape[1])
            operations = 2 * tokens * weight.numel()
            rest = _bytes(x) + tokens * weight.shape[0] * x.element_size()
            yield Case(
                f"{name} in full {tokens}",
                _bytes(weight) + rest,
                operations,
                partial(_product, x=x, weight=weight),
                peers=("torch",),
            )
            for weights in (WeightFormat.INT8, WeightFormat.FP8):
                yield Case(
                    f"{name} in {weights.value} {tokens}",
                    weight.numel() + 4 * weight.shape[0] + rest,
                    operations,
                    partial(_quantised_product, x=x, weight=weight, weights=weights),
                    peers=("torch",),
                )


def _product(kernels: Kernels, *, x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: kernels.linear(x, weight.t(), None)


def _quantised_product(
    kernels: Kernels, *, x: Tensor, weight: Tensor, weights: WeightFormat
) -> Callable[[], object]:
    return partial(QuantisedLinear.prepare(weight, None, weights, kernels), x)
