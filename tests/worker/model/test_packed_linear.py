"""Weights packed for products with many rows."""

from __future__ import annotations

import pytest
import torch

from kernels import kernels_for
from worker.model.linear import Linear, PackedLinear, WeightFormat, projection

KERNELS = kernels_for(torch.device("cpu"))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 15, 16, 300])
def test_a_packed_product_is_the_plain_one_for_any_number_of_rows(rows: int, biased: bool) -> None:
    weight, x = torch.randn(40, 24), torch.randn(rows, 24)
    bias = torch.randn(40) if biased else None
    found = projection(weight, bias, WeightFormat.FULL, KERNELS)
    assert isinstance(found, PackedLinear)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(found(x), exact.float(), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_trained_is_not_packed_so_that_it_gets_its_gradient() -> None:
    weight = torch.randn(8, 4, requires_grad=True)
    found = projection(weight, None, WeightFormat.FULL, KERNELS)
    assert isinstance(found, Linear)
    found(torch.ones(32, 4)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((8, 4), 32.0))


def test_a_packed_weight_serves_columns_of_a_wider_tensor() -> None:
    weight, wide = torch.randn(8, 4), torch.randn(64, 12)
    x = wide[:, 4:8]
    found = projection(weight, None, WeightFormat.FULL, KERNELS)
    torch.testing.assert_close(found(x), x @ weight.t(), rtol=1e-5, atol=1e-5)
