"""What a tenant is granted at present: how much comes, and what the last requests were given."""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field

from controller.planning.decision import Decision, Mode, Refusal, RefusedFor
from controller.policy import Brownout

RATE_MEMORY_S = 30.0
"""An arrival counts with a weight that falls by e in so long."""
PLANS = 64
SQUEEZED = 16
A_MOMENT_S = 0.1
"""Who waits for longer was made to."""

_DEPTH = {level: depth for depth, level in enumerate(Brownout)}


@dataclass(slots=True)
class Activity:
    """One tenant's. Every call says what time it is, which must not go back."""

    began_s: float
    in_flight: int = 0
    _arrivals: float = 0.0
    _counted_s: float = 0.0
    _plans: deque[tuple[Mode, int]] = field(default_factory=lambda: deque(maxlen=PLANS))
    _squeezed: deque[Brownout] = field(default_factory=lambda: deque(maxlen=SQUEEZED))

    def arrive(self, now_s: float) -> None:
        """A request has come."""
        self._arrivals = self._weight(now_s) + 1
        self._counted_s = now_s
        self.in_flight += 1

    def decide(self, verdict: Decision | Refusal, waited_s: float) -> None:
        """It was given a plan, after so long, or was refused."""
        if isinstance(verdict, Decision):
            self._plans.append((verdict.mode, verdict.budget_tokens))
            waited = verdict.price > 0 and waited_s > A_MOMENT_S
            self._squeezed.append(Brownout.QUEUE if waited else verdict.brownout)
        else:
            promise = verdict.reason is RefusedFor.PROMISE
            self._squeezed.append(Brownout.NONE if promise else Brownout.REJECT)

    def end(self) -> None:
        """One that has come is over."""
        self.in_flight -= 1

    def rate_per_s(self, now_s: float) -> float:
        """Requests that come per second."""
        # What was not watched yet is not taken for silence; the first second is no rate at all.
        watched = -math.expm1(-max(1.0, now_s - self.began_s) / RATE_MEMORY_S)
        return self._weight(now_s) / (RATE_MEMORY_S * watched)

    @property
    def think_share(self) -> float:
        """Of the last plans, those that let the request reason; 0 without any."""
        modes = Counter(mode for mode, _ in self._plans)
        return modes[Mode.THINK] / len(self._plans) if self._plans else 0.0

    @property
    def mean_budget_tokens(self) -> float:
        """Of those; 0 without any."""
        budgets = [budget for mode, budget in self._plans if mode is Mode.THINK]
        return statistics.fmean(budgets) if budgets else 0.0

    @property
    def brownout(self) -> Brownout | None:
        """The furthest to which load squeezed one of the last requests; None without any."""
        return max(self._squeezed, key=_DEPTH.__getitem__, default=None)

    def _weight(self, now_s: float) -> float:
        return self._arrivals * math.exp((self._counted_s - now_s) / RATE_MEMORY_S)


class Activities:
    """All tenants' by name."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._by_name: dict[str, Activity] = {}

    def __getitem__(self, name: str) -> Activity:
        """That of this tenant, which a policy names."""
        activity = self._by_name.get(name)
        if activity is None:
            activity = self._by_name[name] = Activity(self._began_s)
        return activity
