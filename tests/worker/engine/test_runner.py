"""A step's logits stand in the order of its plan, and follow each sequence's last token."""

from __future__ import annotations

import torch

from kernels import kernels_for
from tests.kernels.triton.offline import caught
from tests.kernels.waiting import DEVICE, Watch
from tests.worker.engine.small import (
    CPU,
    RecordingRunner,
    make_request,
    make_runner,
    make_settings,
    small_model,
)
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.graphs import DecodeGraphs
from worker.engine.runner import Runner
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Piece, Plan
from worker.engine.sequence import Sequence
from worker.model.dummy import DummyTensors
from worker.model.network import Network
from worker.model.pools import Pools

MODEL = small_model()


def sequence(tokens: list[int], slot: int, pages: list[int]) -> Sequence:
    request = make_request(MODEL, prompt=tokens)
    table = [*MODEL.chat.token_bytes, *[b""] * 3]
    machine = BudgetMachine(request.limits, TextFormat(table, MODEL.chat.end_ids, request.closing))
    return Sequence(request, 0, machine, Sampling(), tokens, slot=slot, pages=pages)


def logits_after(runner: Runner, tokens: list[int]) -> torch.Tensor:
    """Of a sequence computed at once in a slot and pages of its own."""
    fresh = sequence(tokens, slot=0, pages=[0, 1, 2, 3])
    runner.pools.clear_slot(0)
    return runner.run(Plan([], [Piece(fresh, len(tokens))]))[0]


@torch.inference_mode()
def test_decodes_and_pieces_of_any_place_are_computed_in_one_step() -> None:
    runner = make_runner(MODEL, make_settings(slots=5, pages=20), RecordingRunner)
    decoding = sequence([5, 6, 7, 8, 9, 10, 11, 12, 13], slot=3, pages=[9, 7])
    beginning = sequence([20, 21, 22], slot=1, pages=[8])
    going_on = sequence([30] * 21, slot=2, pages=[10, 15, 11])
    for slot in (1, 2, 3):
        runner.pools.clear_slot(slot)
    runner.run(Plan([], [Piece(decoding, 8), Piece(going_on, 16)]))
    decoding.computed, going_on.computed = 8, 16
    logits = runner.run(Plan([decoding], [Piece(beginning, 3), Piece(going_on, 5)]))
    assert logits.shape == (3, MODEL.config.vocab_size)
    assert logits.dtype == torch.float32
    for row, of in zip(logits, (decoding, beginning, going_on), strict=True):
        torch.testing.assert_close(row, logits_after(runner, of.tokens), rtol=1e-4, atol=1e-4)
    assert [s.computed for s in (decoding, beginning, going_on)] == [8, 0, 16], "not the runner's to move"


@torch.inference_mode()
def test_tokens_behind_the_piece_are_not_fed() -> None:
    runner = make_runner(MODEL, make_settings(slots=2, pages=8), RecordingRunner)
    runner.pools.clear_slot(1)
    [row] = runner.run(Plan([], [Piece(sequence([5, 6, 7, 8], slot=1, pages=[5]), 2)]))
    torch.testing.assert_close(row, logits_after(runner, [5, 6]), rtol=1e-4, atol=1e-4)
    assert runner.network.device == CPU


@torch.inference_mode()
def test_a_step_is_launched_without_waiting_for_the_device() -> None:
    """Captured or not, from the tokens to the logits."""
    dtype = torch.bfloat16
    tensors, kernels = DummyTensors(device=DEVICE, dtype=dtype), kernels_for(torch.device("cuda"), "triton")
    network = Network(MODEL.config, tensors, kernels, dtype=dtype)
    pools = Pools.allocate(MODEL.config, slots=3, pages=8, page_tokens=8, dtype=dtype, device=DEVICE)
    decoding = sequence([5, 6, 7, 8, 9], slot=0, pages=[3, 1])
    decoding.computed = 4
    piece = Piece(sequence([20, 21, 22], slot=2, pages=[5]), 3)
    with caught() as launches:
        graphs = DecodeGraphs(
            network, pools, page_tokens=8, max_pages=4, sizes=(2,), capture=lambda step: step
        )
        runner = Runner(network, pools, 8, graphs)
        for plan in (Plan([decoding], []), Plan([decoding], [piece])):
            launches.clear()
            with Watch() as watch:
                logits = runner.run(plan)
            assert logits.shape == (len(plan.decodes) + len(plan.pieces), MODEL.config.vocab_size)
            assert watch.waits == []
            assert launches


def test_what_a_sequence_has_is_noted_without_waiting_for_the_device() -> None:
    seen = sequence([5, 6, 7], slot=0, pages=[0])
    with Watch() as watch:
        for _ in range(2):
            assert seen.see(MODEL.config.vocab_size, DEVICE).device == DEVICE
            seen.tokens.append(8)
    assert watch.waits == []
