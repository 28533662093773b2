"""What is sent to a device arrives as it was, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from kernels.transfer import send, send_all
from tests.kernels.waiting import DEVICE, Watch

VALUES = [
    torch.tensor([3, 1, 2]),
    torch.tensor([[1.5, -2.0, 0.25]]),
    torch.tensor([True, False, True, True, False]),
    torch.empty(0, 4, dtype=torch.long),
    torch.arange(12, dtype=torch.int32).view(3, 4).T,
    torch.tensor(7),
]


def test_on_a_cpu_tensors_stay_what_they_are() -> None:
    assert send(VALUES[0], torch.device("cpu")) is VALUES[0]
    assert send_all(VALUES, torch.device("cpu")) is VALUES


def test_all_of_a_kind_arrive_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each where any kernel may begin to read. The device is the CPU, called otherwise."""
    copied: list[Tensor] = []

    def arrive(values: Tensor, device: torch.device) -> Tensor:
        copied.append(values)
        return values

    monkeypatch.setattr("kernels.transfer.send", arrive)
    sent = send_all(VALUES, DEVICE)
    assert len(copied) == 1
    for value, other in zip(VALUES, sent, strict=True):
        assert (value.dtype, value.shape) == (other.dtype, other.shape)
        assert torch.equal(value, other)
        assert (other.data_ptr() - copied[0].data_ptr()) % 16 == 0
        assert other.is_contiguous()


def test_sending_waits_for_nothing() -> None:
    with Watch() as watch:
        sent = [send(VALUES[0], DEVICE), *send_all(VALUES, DEVICE)]
    assert watch.waits == []
    assert {value.device for value in sent} == {DEVICE}


THERE = torch.empty(4, 6, device=DEVICE)
ROWS = torch.empty(2, dtype=torch.long, device=DEVICE)


@pytest.mark.parametrize(
    "waits",
    [
        lambda: torch.tensor([1, 2], device=DEVICE),
        lambda: torch.tensor([1, 2]).to(DEVICE),
        lambda: torch.tensor([1, 2]).to(DEVICE, non_blocking=True),
        lambda: torch.tensor([1, 2]).pin_memory().to(DEVICE),
        lambda: ROWS.copy_(torch.tensor([1, 2])),
        lambda: THERE[[0, 1]],
        lambda: THERE[torch.tensor([0, 1])],
        lambda: THERE.__setitem__(ROWS, 0.0),
        lambda: THERE.index_select(0, torch.tensor([0, 1])),
        ROWS.tolist,
    ],
)
def test_what_waits_is_noticed(waits: Callable[[], object]) -> None:
    with Watch() as watch, suppress(RuntimeError, NotImplementedError):  # of tensors without memory
        waits()
    assert len(watch.waits) == 1
