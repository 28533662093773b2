"""The callers' account of it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chaos.callers import Ended, Outcome
from benchmarks.chaos.truth import Case, Difference, Tokens, difference


@dataclass(frozen=True, slots=True)
class Tally:
    """requests = answered + failed_cleanly + lost. broken_off: streams that a caller had to ask anew. moved:
    answered requests that more than one worker served. budget_overshoot: reasoning tokens past budget and
    grace. attainment: of the requests with a deadline, those that kept it by the caller's clock.
    """

    requests: int
    answered: int
    failed_cleanly: int
    lost: int
    broken_off: int
    moved: int
    difference: Difference
    budget_overshoot: int
    attainment: float


def cases(ended: Sequence[Ended]) -> list[Case]:
    """All that must be known to judge them."""
    return [case for each in ended for stream in each.streams for case in Case.of(each.ask, stream)]


def tally(ended: Sequence[Ended], truths: Mapping[Case, Tokens]) -> Tally:
    """Judges them. truths: of all their cases."""
    outcomes = Counter(each.outcome for each in ended)
    differs, overshoot, moved = Difference(), 0, 0
    for each in ended:
        for stream in each.streams:
            overshoot += max(0, stream.reasoning_tokens - stream.most_reasoning_tokens)
            whole = stream.completion is not None
            may_be = Case.of(each.ask, stream)
            found = [difference(stream.tokens, truths[case], whole=whole) for case in may_be]
            differs += min(found, key=lambda one: one.total, default=Difference())
        last = each.streams[-1].completion
        moved += last is not None and len(last.raw.attempts) > 1
    promised = [each for each in ended if each.ask.tenant.deadline_s is not None]
    return Tally(
        requests=len(ended),
        answered=outcomes[Outcome.ANSWERED],
        failed_cleanly=outcomes[Outcome.FAILED_CLEANLY],
        lost=outcomes[Outcome.LOST],
        broken_off=sum(len(each.streams) - 1 for each in ended),
        moved=moved,
        difference=differs,
        budget_overshoot=overshoot,
        attainment=sum(each.in_time for each in promised) / max(1, len(promised)),
    )
