"""From a trace to the requests of a simulation: whose they are, and what the model would do with them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from controller.planning.lengths import StopCurve
from controller.simulation.job import Nature
from controller.simulation.trace import Arrival, ReasoningEnd, Trace

UNSEEN_FACTOR = 1.5
"""Reasoning that was cut where no other of its tenant was longer is taken to want so many times as much."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that will come, with all of its luck: every policy meets the same.

    tenant: of the policy. luck: in [0, 1): the answer is right if its probability is above. haste: in
    [0, 1): by how much its messages take less, or more, than usual.
    """

    arrival: Arrival
    tenant: str
    nature: Nature
    luck: float
    haste: float


def prepare(
    trace: Trace,
    tenant_of: Callable[[Arrival, float], str],
    seed: int,
    boundary_tokens: float,
) -> list[Request]:
    """The requests of a trace. tenant_of: the policy's tenant for an arrival and a number in [0, 1)."""
    rng = Random(seed)
    complete = _completed(trace)
    requests = []
    for arrival in trace.arrivals:
        luck, haste, which, length, boundary = (rng.random() for _ in range(5))
        nature = Nature(
            prompt_tokens=max(1, arrival.input_tokens),
            reasoning_tokens=max(1, complete(arrival, length)),
            answer_tokens=max(1, arrival.answer_tokens),
            boundary_tokens=int(2 * boundary_tokens * boundary),
        )
        requests.append(Request(arrival, tenant_of(arrival, which), nature, luck, haste))
    return requests


def _completed(trace: Trace) -> Callable[[Arrival, float], int]:
    """Where reasoning would stop by itself, for a number in [0, 1).

    Of reasoning that was cut it is only known that it would have been longer: it is drawn from those of the
    same tenant that were, by the product-limit estimate.
    """
    seen: dict[str, list[tuple[int, bool]]] = {}
    for arrival in trace.arrivals:
        if arrival.reasoning_end is not ReasoningEnd.NONE:
            seen.setdefault(arrival.tenant, []).append(arrival.wants)
    curves = {tenant: StopCurve.estimate(pairs) for tenant, pairs in seen.items()}
    everyone = StopCurve.estimate([pair for pairs in seen.values() for pair in pairs])

    def complete(arrival: Arrival, number: float) -> int:
        tokens, whole = arrival.wants
        return tokens if whole else _longer(curves.get(arrival.tenant, everyone), tokens, number)

    return complete


def _longer(curve: StopCurve, tokens: int, number: float) -> int:
    """A length above `tokens`, drawn by a curve."""
    index = bisect_right(curve.lengths, tokens)
    longer: Sequence[int] = curve.lengths[index:]
    if not longer:
        return int(UNSEEN_FACTOR * tokens) + 1
    before = curve.stopped[index - 1] if index else 0.0
    level = before + number * (curve.stopped[-1] - before)
    return longer[min(bisect_right(curve.stopped[index:], level), len(longer) - 1)]


def by_tenant(requests: Sequence[Request]) -> dict[str, list[Request]]:
    """Requests by the policy's tenant, in the order of their first arrivals."""
    grouped: dict[str, list[Request]] = {}
    for request in requests:
        grouped.setdefault(request.tenant, []).append(request)
    return grouped
