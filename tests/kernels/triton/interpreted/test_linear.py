"""Products of few tokens, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import kernels_for, torch_ops
from kernels.triton_ops import tiles

CPU = torch.device("cpu")
TRITON, TWIN = kernels_for(CPU, "triton"), kernels_for(CPU, "torch")


def error(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    exact = x.double() @ weight.double()
    if bias is not None:
        exact += bias.double()
    return float((got.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"),
    # One number; odd sizes; several tiles of channels; shared inputs, the last share a part of a tile.
    [(1, 1, 1), (5, 33, 47), (17, 150, 30), (32, 20, 300)],
)
def test_a_product_of_few_tokens_is_the_exact_one(tokens: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, inputs + 3).half()[:, 3:]
    weight, bias = torch.randn(outputs, inputs).half().t(), torch.randn(outputs).half()
    for given in (bias, None):
        y = TRITON.linear(x, weight, given)
        assert y.dtype == x.dtype
        assert error(y, x, weight, given) < 1e-3
        assert error(TWIN.linear(x, weight, given), x, weight, given) < 1e-3


def test_a_tokens_result_does_not_depend_on_the_batch_of_its_decode_step() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(32, 700).half(), torch.randn(8, 700).half().t()
    assert tiles.linear_tiles(1, 8, 700).share < 700
    alone = TRITON.linear(x[1:2], weight, None)
    for tokens in (2, 17, 32):
        assert torch.equal(TRITON.linear(x[:tokens], weight, None)[1:2], alone)


def test_more_tokens_older_devices_and_fp32_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def left(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(len(x))
        return TWIN.linear(x, weight, bias)

    monkeypatch.setattr(torch_ops, "linear", left)
    x, weight = torch.randn(33, 16).half(), torch.randn(8, 16).half().t()
    TRITON.linear(x, weight, None)
    TRITON.linear(x[:1].float(), weight.float(), None)
    TRITON.linear(x[:1], weight.contiguous(), None)
    TRITON.linear(x[:1], weight, None)
    assert made == [33, 1, 1]
    monkeypatch.setattr(tiles, "hopper", lambda device: False)
    TRITON.linear(x[:1], weight, None)
    assert made == [33, 1, 1, 1]
