"""Which requests' outcomes may still be reported, and under what circumstances their answers came about."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from controller.planning.stops import StopCurve

CAPACITY = 2**17
"""Requests, some 30 MB."""
LEAST_SHARE = 256
MAX_AGE_S = 3600.0


class Ended(Enum):
    """How a request came to its answer: without reasoning, after reasoning that stopped by itself, or that
    was cut.
    """

    WITHOUT = "without"
    STOPPED = "stopped"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Trial:
    """An answer whose quality somebody may report.

    rule: of the policy that it was planned by. left_tokens: by how much reasoning was expected to go on where
    it ended, if it was cut, and from its beginning otherwise; None where that was not known.
    """

    rule: str
    ended: Ended
    left_tokens: float | None

    @classmethod
    def of(cls, rule: str, ended: Ended, reasoning_tokens: int, stops: StopCurve) -> Trial:
        """stops: where the reasoning of requests like it stops."""
        return cls(rule, ended, left_tokens(stops, reasoning_tokens if ended is Ended.CUT else 0))


def left_tokens(stops: StopCurve, reached: int) -> float | None:
    """How much longer reasoning is expected to go on, within the longest seen; None beyond that."""
    longest = stops.lengths[-1] if stops.lengths else 0
    return stops.expected_use(longest, reached) - reached if longest > reached else None


class ConflictError(Exception):
    """Another score was reported before."""


class Outcomes:
    """The last requests that were answered, by tenant and id, and what was reported of them.

    A tenant sees its own alone. All tenants have equal shares of the capacity, so that one with many requests
    does not displace another's; each keeps at least `LEAST_SHARE`.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, OrderedDict[str, _Answered]] = {}

    def remember(self, tenant: str, request_id: str, trial: Trial, now_s: float) -> None:
        """A request was answered. `now_s` must not go back."""
        answered = self._tenants.setdefault(tenant, OrderedDict())
        answered[request_id] = _Answered(trial, now_s)
        share = max(LEAST_SHARE, CAPACITY // len(self._tenants))
        while len(answered) > share or _is_old(next(iter(answered.values())), now_s):
            answered.popitem(last=False)

    def report(self, tenant: str, request_id: str, score: float, now_s: float) -> Trial | None:
        """What a score is to be learnt for; None when it was reported before, so that a caller may try again.

        Raises LookupError when the tenant has no such request, or had it too long ago; ConflictError when
        another score was reported for it.
        """
        own = self._tenants.get(tenant)
        answered = own.get(request_id) if own is not None else None
        if answered is None or _is_old(answered, now_s):
            raise LookupError(f"{tenant} has no request {request_id}")
        if answered.score is None:
            answered.score = score
            return answered.trial
        if not math.isclose(answered.score, score):
            raise ConflictError(f"request {request_id} was reported as {answered.score:g}")
        return None


@dataclass(slots=True)
class _Answered:
    trial: Trial
    ended_s: float
    score: float | None = None


def _is_old(answered: _Answered, now_s: float) -> bool:
    return answered.ended_s <= now_s - MAX_AGE_S
