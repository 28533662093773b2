"""mamba-ssm's own kernels, interpreted, as a third opinion on the scans."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext

import pytest
import torch

from kernels import Kernels, kernels_for
from tests.kernels.reference import ScanInputs
from tests.kernels.triton.interpreted.test_against_references import CPU, error, packings, pieces

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None, reason="mamba-ssm is not installed: make mamba-ssm"
)


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Its kernels, with what they ask of a GPU replaced: the current device, and timings to tune by."""
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(Autotuner, "_bench", lambda *args, **named: [0.0, 0.0, 0.0])
    return kernels_for(CPU, "mamba_ssm")


@packings
def test_scan_prefill_agrees(peer: Kernels, spans: list[tuple[int, int]]) -> None:
    layout, index = pieces(spans)
    inputs = ScanInputs.draw(layout.tokens, seed=len(spans), heads=2, width=16, groups=1, size=16)
    ours = torch.randn(len(spans) + 1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    theirs = ours.clone()
    y = kernels_for(CPU, "triton").scan_prefill(*inputs.arguments(), ours, layout.slots, index)
    expected = peer.scan_prefill(*inputs.arguments(), theirs, layout.slots, index)
    assert error(y, expected.double()) < 1e-4
    assert error(ours, theirs.double()) < 1e-4


@pytest.mark.parametrize("slots", [[6, 2, 5], [3]])
def test_scan_update_agrees(peer: Kernels, slots: list[int]) -> None:
    inputs = ScanInputs.draw(len(slots), seed=len(slots), heads=2, width=20, groups=2, size=16)
    ours = torch.randn(7, 2, 20, 16, generator=torch.Generator().manual_seed(2))
    theirs = ours.clone()
    y = kernels_for(CPU, "triton").scan_update(*inputs.arguments(), ours, torch.tensor(slots))
    expected = peer.scan_update(*inputs.arguments(), theirs, torch.tensor(slots))
    assert error(y, expected.double()) < 1e-5
    assert error(ours, theirs.double()) < 1e-5
