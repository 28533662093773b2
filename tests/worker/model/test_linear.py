"""Quantised weights: how near they are to those in full, projection by projection and as a whole model."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.harness import DEMO_MODEL
from demo.problems import held_out
from kernels import kernels_for
from kernels.layout import Segment, step_layout
from worker.engine.build import Model, load_model
from worker.model.chat import Role, Turn
from worker.model.linear import Linear, QuantisedLinear, WeightFormat, projection
from worker.model.pools import Pools

CPU = torch.device("cpu")
KERNELS = kernels_for(CPU)
QUANTISED = [WeightFormat.INT8, WeightFormat.FP8]
formats = pytest.mark.parametrize("weights", QUANTISED)


def dequantised(linear: QuantisedLinear) -> Tensor:
    return linear.weight.float() * linear.scales[:, None]


def prepare(weight: Tensor, weights: WeightFormat, bias: Tensor | None = None) -> QuantisedLinear:
    found = projection(weight, bias, weights, KERNELS)
    assert isinstance(found, QuantisedLinear)
    return found


@formats
@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=50)
def test_no_weight_is_further_off_than_its_format_rounds(weights: WeightFormat, data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    sizes = 10.0 ** torch.tensor([data.draw(st.integers(-20, 20)) for _ in range(outputs)]).float()
    weight = torch.randn(outputs, inputs, generator=generator) * sizes[:, None]
    found = prepare(weight, weights)
    largest = weight.abs().amax(1, keepdim=True)
    # int8: half a step of a 127th. e4m3: half of an eighth of the power of two below, or of the least step.
    step = largest / 254 if weights is WeightFormat.INT8 else (weight.abs() / 16).maximum(largest * 2**-18)
    assert bool(((dequantised(found) - weight).abs() <= step * 1.0001).all())
    assert bool((dequantised(found).abs().amax(1, keepdim=True) - largest).abs().le(largest * 1e-6).all())


@pytest.mark.parametrize(("weights", "more"), [(WeightFormat.INT8, 0.04), (WeightFormat.FP8, 0.004)])
def test_rounding_scaled_weights_to_bf16_adds_little_to_what_they_have_lost(
    weights: WeightFormat, more: float
) -> None:
    """A GPU does it for steps of many tokens. Errors are root mean squares."""
    published = torch.randn(256, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    scaled = dequantised(prepare(published, weights))
    rounding = error(scaled.bfloat16(), scaled)
    # No more than bf16 has taken from the published weight.
    assert rounding < 2**-9
    assert error(scaled.bfloat16(), published) < error(scaled, published) * (1 + more)


def error(got: Tensor, exact: Tensor) -> float:
    """Relative root mean square."""
    return float((got.double() - exact.double()).pow(2).mean().sqrt() / exact.double().pow(2).mean().sqrt())


@formats
def test_a_channel_of_zeros_stays_zero(weights: WeightFormat) -> None:
    weight = torch.stack([torch.zeros(8), torch.full((8,), 3.0)])
    found = prepare(weight, weights, torch.tensor([1.0, 0.0]))
    assert found(torch.ones(1, 8)).tolist() == [[1.0, pytest.approx(24.0)]]


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_projection_takes_half_or_a_quarter_and_gives_nearly_the_same(
    weights: WeightFormat, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(96, 256).to(dtype), torch.randn(96).to(dtype), torch.randn(7, 256).to(dtype)
    full, quantised = Linear.prepare(weight, bias, KERNELS), prepare(weight, weights, bias)
    exact, y = full(x), quantised(x)
    assert y.dtype == dtype
    assert quantised.weight.nbytes * dtype.itemsize == full.weight.nbytes
    # Independent roundings of 256 products.
    off = float((y.double() - exact.double()).norm() / exact.double().norm())
    assert off < {WeightFormat.INT8: 0.01, WeightFormat.FP8: 0.035}[weights]


def test_a_projection_in_full_is_the_exact_one() -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(4, 3), torch.randn(2, 3)
    assert torch.allclose(projection(weight, None, WeightFormat.FULL, KERNELS)(x), x @ weight.t())


def test_a_captured_step_multiplies_by_its_kernel_and_another_by_pytorchs() -> None:
    made: list[int] = []

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(len(x))
        return KERNELS.linear(x, weight, bias)

    full = Linear.prepare(torch.randn(4, 3), None, replace(KERNELS, linear=kernel))
    assert torch.equal(full(torch.ones(2, 3)), full(torch.ones(2, 3), captured=True))
    assert made == [2]


@pytest.fixture(scope="module")
def models() -> dict[WeightFormat, Model]:
    """The demo model in every format."""
    return {
        weights: load_model(DEMO_MODEL, device=CPU, dtype=torch.float32, weights=weights)
        for weights in WeightFormat
    }


def traces(model: Model) -> list[tuple[int, list[int]]]:
    """Held-out problems with their reasoning written out: (tokens of the prompt, all tokens)."""
    found = []
    for problem in held_out(30):
        prompt = model.chat.prompt([Turn(Role.USER, problem.question)], think=True).ids
        found.append((len(prompt), [*prompt, *model.chat.encode("\n".join(problem.reasoning))]))
    return found


@torch.inference_mode()
def logits(model: Model, tokens: list[int]) -> Tensor:
    """What the model expects after each token [tokens, vocab]."""
    config, network = model.config, model.network
    pages = range(-(-len(tokens) // 32))
    pools = Pools.allocate(config, slots=1, pages=len(pages), page_tokens=32, dtype=network.dtype, device=CPU)
    layout = step_layout(
        [],
        [Segment(0, 0, len(tokens), pages)],
        page_tokens=32,
        chunk=config.chunk_size,
        window=config.conv_kernel,
        device=CPU,
    )
    return network.logits(network.hidden(torch.tensor(tokens), layout, pools))


@formats
def test_the_demo_model_reasons_as_it_does_in_full(
    weights: WeightFormat, models: dict[WeightFormat, Model]
) -> None:
    full, quantised = models[WeightFormat.FULL], models[weights]
    same, total, off = 0, 0, []
    for first, tokens in traces(full):
        exact, found = (logits(model, tokens)[first - 1 :] for model in (full, quantised))
        same += int((exact.argmax(-1) == found.argmax(-1)).sum())
        total += len(exact)
        off.append(float((found - exact).norm() / exact.norm()))
    assert total > 1000
    assert same / total > {WeightFormat.INT8: 0.998, WeightFormat.FP8: 0.99}[weights]
    assert mean(off) < {WeightFormat.INT8: 0.005, WeightFormat.FP8: 0.015}[weights]


@formats
def test_only_the_projections_are_quantised(weights: WeightFormat, models: dict[WeightFormat, Model]) -> None:
    network = models[weights].network
    config, held = network.config, list(network.tensors())
    stored = [tensor for tensor in held if tensor.dtype != torch.float32]
    assert len(stored) == 2 * len(config.layers)
    assert not any(config.vocab_size in tensor.shape for tensor in stored)
    numbers = sum(tensor.numel() for tensor in held)
    assert sum(tensor.nbytes for tensor in held) < 0.4 * 4 * numbers
    assert network.weights is weights
