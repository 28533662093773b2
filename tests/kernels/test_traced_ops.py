"""The decode operations that are made to be compiled do what their twins do, on any slots and pages."""

from __future__ import annotations

import pytest
import torch

from kernels import kernels_for
from kernels.layout import Segment, step_layout
from kernels.traced_ops import traceable
from tests.kernels.reference import ScanInputs

CPU = torch.device("cpu")
TWINS = kernels_for(CPU)
KERNELS = traceable(TWINS)
SLOTS = [[0, 1, 2, 3, 4], [3], [3, 2, 1], [6, 2, 5], [0, 6]]
slot_lists = pytest.mark.parametrize("slots", SLOTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dtypes
@pytest.mark.parametrize("residual", [False, True])
def test_add_rms_norm(residual: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 24).to(dtype), torch.randn(24)
    before = torch.randn(3, 24).to(dtype) if residual else None
    got, expected = (k.add_rms_norm(x, before, weight, 1e-5) for k in (KERNELS, TWINS))
    torch.testing.assert_close(got, expected)


@dtypes
def test_gated_group_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    y, gate, weight = torch.randn(5, 48).to(dtype), torch.randn(5, 48).to(dtype), torch.randn(48)
    got, expected = (k.gated_group_norm(y, gate, weight, 1e-5, 4) for k in (KERNELS, TWINS))
    torch.testing.assert_close(got, expected)


@slot_lists
@pytest.mark.parametrize("biased", [False, True])
def test_conv_update(slots: list[int], biased: bool) -> None:
    torch.manual_seed(2)
    x, weight, states = torch.randn(len(slots), 6), torch.randn(4, 6), torch.randn(7, 3, 6)
    bias = torch.randn(6) if biased else None
    places, others = torch.tensor(slots), states.clone()
    got = KERNELS.conv_update(x, weight, bias, states, places)
    torch.testing.assert_close(got, TWINS.conv_update(x, weight, bias, others, places))
    assert torch.equal(states, others)


@slot_lists
@dtypes
def test_scan_update(slots: list[int], dtype: torch.dtype) -> None:
    inputs = ScanInputs.draw(len(slots), seed=3)
    states = torch.randn(7, 6, 5, 7, generator=torch.Generator().manual_seed(4)).to(dtype)
    places, others = torch.tensor(slots), states.clone()
    got = KERNELS.scan_update(*inputs.arguments(), states, places)
    torch.testing.assert_close(got, TWINS.scan_update(*inputs.arguments(), others, places))
    torch.testing.assert_close(states, others)


@pytest.mark.parametrize("positions", [[0], [3], [37], [0, 1, 2, 3, 4, 5], [200, 3, 0, 17, 64]])
def test_attention_decode(positions: list[int]) -> None:
    torch.manual_seed(5)
    count, page = len(positions), 4
    pages = [[n + count * turn for turn in range(at // page + 1)] for n, at in enumerate(positions)]
    layout = step_layout(
        [Segment(n, at, 1, pages[n]) for n, at in enumerate(positions)],
        [],
        page_tokens=page,
        chunk=8,
        window=4,
        device=CPU,
    )
    keys, values = torch.randn(2, 1 + max(map(max, pages)), page, 2, 5)
    q = torch.randn(count, 6, 5)
    arguments = q, keys, values, layout.page_table, layout.context
    torch.testing.assert_close(KERNELS.attention_decode(*arguments), TWINS.attention_decode(*arguments))
