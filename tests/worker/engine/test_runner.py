"""A step's logits stand in the order of its plan, and follow each sequence's last token."""

from __future__ import annotations

import torch

from tests.worker.engine.small import (
    CPU,
    RecordingRunner,
    make_request,
    make_runner,
    make_settings,
    small_model,
)
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.runner import Runner
from worker.engine.sampling import Sampling
from worker.engine.scheduler import Piece, Plan
from worker.engine.sequence import Sequence

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
