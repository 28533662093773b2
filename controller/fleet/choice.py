"""Which of a few workers a request goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller.fleet.worker import Worker

TIE = 0.05
"""Predicted finishes that differ by less than this part are equally good: predictions are no better."""


class Candidate(NamedTuple):
    """A worker that a request may go to. finish_s: predicted for this request. affine: where requests with
    its system turn go if nothing speaks against it.
    """

    worker: Worker
    requests: int
    finish_s: float
    affine: bool


def pick(candidates: Sequence[Candidate]) -> Worker:
    """The one where the request ends first, of one or more. Of those that are equally good the one with the
    fewest requests, and of these the affine one.

    Callers hand in two that were drawn at random among the best, and not the very best: controllers whose
    news are equally old would all run to that one (Mitzenmacher 2001, "The Power of Two Choices in Randomized
    Load Balancing").
    """
    if len(candidates) == 1:
        return candidates[0].worker
    tied_s = min([candidate.finish_s for candidate in candidates]) * (1 + TIE)
    tied = [candidate for candidate in candidates if candidate.finish_s <= tied_s]
    return min(tied, key=lambda each: (each.requests, not each.affine, each.finish_s)).worker
