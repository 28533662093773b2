"""Products with quantised weights, interpreted, against their twin and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import kernels_for
from kernels.triton_ops import tiles

CPU = torch.device("cpu")
TRITON, TWIN = kernels_for(CPU, "triton"), kernels_for(CPU, "torch")
FORMATS = (torch.int8, torch.float8_e4m3fn)
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3}


@pytest.fixture(params=[True, False], ids=["hopper", "older"], autouse=True)
def hopper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "hopper", lambda device: request.param)


def every_number(stored: torch.dtype, rows: int, columns: int) -> Tensor:
    """A weight in which every number of the format occurs, where it has room."""
    bits = torch.arange(rows * columns).reshape(rows, columns) % 256
    if stored == torch.int8:
        return (bits - 128).clamp(-127, 127).to(torch.int8)
    # 0x7f and 0xff are not numbers.
    return torch.where(bits % 128 == 127, 0, bits).to(torch.uint8).view(stored)


def error(got: Tensor, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> float:
    exact = x.double() @ (weight.double() * scales.double()[:, None]).t()
    if bias is not None:
        exact += bias.double()
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"),
    # One number; odd sizes; several tiles of channels; shared inputs, the last share a part of a tile;
    # a tile for many tokens, and its inputs shared; so many that the weight is converted once.
    [(1, 1, 1), (5, 33, 47), (17, 150, 30), (2, 20, 300), (70, 140, 40), (128, 9, 200), (129, 70, 1100)],
)
def test_a_product_is_the_exact_one(tokens: int, outputs: int, inputs: int, stored: torch.dtype) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, inputs + 3)[:, 3:]
    weight, scales, bias = every_number(stored, outputs, inputs), torch.rand(outputs), torch.randn(outputs)
    y = TRITON.quantised_linear(x, weight, scales, bias)
    assert y.dtype == x.dtype
    assert error(y, x, weight, scales, bias) < ROUNDING[x.dtype]
    assert error(TWIN.quantised_linear(x, weight, scales, bias), x, weight, scales, bias) < 1e-6
    without = TRITON.quantised_linear(x, weight, scales, None)
    assert error(without, x, weight, scales, None) < ROUNDING[x.dtype]


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("tokens", [3, 130])
def test_a_product_in_fp16_is_rounded_no_more_than_its_numbers(tokens: int, stored: torch.dtype) -> None:
    torch.manual_seed(1)
    x, scales = torch.randn(tokens, 160).half(), torch.rand(70) / 100
    weight, bias = every_number(stored, 70, 160), torch.randn(70).half()
    y = TRITON.quantised_linear(x, weight, scales, bias)
    assert y.dtype == torch.float16
    assert error(y, x, weight, scales, bias) < ROUNDING[x.dtype]


@pytest.mark.parametrize("stored", FORMATS)
def test_every_number_of_a_format_is_read_exactly(stored: torch.dtype) -> None:
    weight = every_number(stored, 16, 16)
    y = TRITON.quantised_linear(torch.eye(16), weight, torch.ones(16), None)
    assert torch.equal(y, weight.float().t())


def test_a_tokens_result_does_not_depend_on_the_batch_of_its_decode_step() -> None:
    torch.manual_seed(2)
    x, weight, scales = torch.randn(64, 700), every_number(torch.int8, 8, 700), torch.rand(8)
    assert tiles.quantised_linear_tiles(1, 8, 700, wide=True).share < 700
    alone = TRITON.quantised_linear(x[1:2], weight, scales, None)
    for tokens in (2, 33, 64):
        assert (
            error(TRITON.quantised_linear(x[:tokens], weight, scales, None), x[:tokens], weight, scales, None)
            < 1e-6
        )
    assert torch.equal(TRITON.quantised_linear(x[:4], weight, scales, None)[1:2], alone)
