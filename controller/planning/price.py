"""What a slot-second of the pool is worth: the price at which what is asked for fits into what there is.

Each arrival brings a menu (`controller.planning.options.menu`): how much of the pool it would use at any
price. The menus of the last seconds, and of those that wait, are summed into one demand curve; the price is
where that curve meets the pool's capacity, as in the Lagrangian relaxation of a knapsack. Since demand is
known for every price, a step in the load moves the price at once to where it belongs: nothing is searched
for by trial, so nothing oscillates. Whoever asks for no more than its share of the pool, by weight, never
pays more than that share costs, whatever others ask for: max-min fairness (Bertsekas & Gallager 1992, §6.5).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.planning.options import Increment

MEMORY_S = 2.5
"""Arrivals are counted with a weight that falls by e in so long: a burst is seen within a second."""
ACTIVE_S = 15.0
"""A tenant shares the pool so long after its last arrival."""
CLEAR_WAITING_S = 2.0
"""In so long those that wait should be served."""
TARGET_USE = 0.92
"""Part of the capacity that is given away: what is left keeps queues short when arrivals bunch."""
LEAST_DENSITY, BUCKET_RATIO, BUCKETS = 1e-6, 1.25, 124
"""Densities of 1e-6 to 1e6 quality per slot-second, within a quarter."""
CORRECTION_GAIN = 0.5
"""What comes of demand differs from what was expected: slots stand idle, or requests wait. In the time that a
request has its slot the supply is corrected by so much, on a logarithmic scale, for each part of the pool
that is idle or missing: faster than what is corrected can show, it would oscillate.
"""
SLOWEST_S, FASTEST_S = 10.0, 0.1
"""Times that a request has its slot are taken to be between these."""
MOST_CORRECTION = 1.1
"""On that scale: to a third, or to three times as much."""
RESCALE_AT = 1e9
"""Weights grow with time instead of falling; beyond this they are all scaled down."""

_LOG_RATIO = math.log(BUCKET_RATIO)
_UNPRICED = BUCKETS
"""Index of demand that no price takes away."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Where supply ends: denser demand than this bucket's is met, and this part of the bucket's own."""

    bucket: int
    met: float

    @property
    def price(self) -> float:
        """That takes away what is not met, as if the demand in the bucket were spread evenly over it."""
        return float(LEAST_DENSITY * BUCKET_RATIO ** (self.bucket + 1 - self.met))

    def part_met(self, density: float) -> float:
        """Of demand of a density."""
        bucket = bucket_of(density)
        return self.met if bucket == self.bucket else float(bucket > self.bucket)


def bucket_of(density: float) -> int:
    """The bucket that a density counts in: those out of range with the nearest, an infinite one by itself."""
    if math.isinf(density):
        return _UNPRICED
    if density <= LEAST_DENSITY:
        return 0
    return min(BUCKETS - 1, int(math.log(density / LEAST_DENSITY) / _LOG_RATIO))


@dataclass(frozen=True, slots=True)
class Asked:
    """What some controllers' callers ask of the pool.

    by_bucket: slot-seconds a second by bucket of density, as experience has what comes of them. capacity:
    slots, the most that one of the controllers sees. weight: of the tenants that ask, each counted once at
    every controller where it does.
    """

    by_bucket: tuple[float, ...]
    capacity: float
    weight: float


NOTHING_ASKED = Asked((), 0.0, 0.0)


class Demand:
    """Slot-seconds by density, and their sum."""

    __slots__ = ("_by_bucket", "total")

    def __init__(self) -> None:
        self._by_bucket = [0.0] * (BUCKETS + 1)
        self.total = 0.0

    @classmethod
    def of(cls, by_bucket: Sequence[float]) -> Demand:
        """Demand as it was told; what it does not say is 0."""
        demand = cls()
        demand._by_bucket[: len(by_bucket)] = by_bucket
        demand.total = sum(by_bucket)
        return demand

    @property
    def by_bucket(self) -> tuple[float, ...]:
        """Slot-seconds by bucket, the one that no price takes away last."""
        return tuple(self._by_bucket)

    def add(self, density: float, slot_s: float) -> None:
        """Adds demand, or takes it away where `slot_s` is negative."""
        self._by_bucket[bucket_of(density)] += slot_s
        self.total += slot_s

    def scale(self, factor: float) -> None:
        """Multiplies all of it."""
        self._by_bucket = [slot_s * factor for slot_s in self._by_bucket]
        self.total *= factor

    def plus(self, other: Demand, factor: float) -> Demand:
        """This and a multiple of another."""
        both = Demand()
        both._by_bucket = [
            mine + factor * its if its > 0 else mine
            for mine, its in zip(self._by_bucket, other._by_bucket, strict=True)
        ]
        both.total = self.total + factor * max(0.0, other.total)
        return both

    def margin(self, supply: float) -> Margin | None:
        """Up to where the densest demand is met by `supply`; None when all of it is."""
        if self.total <= supply:
            return None
        met = list(itertools.accumulate(reversed(self._by_bucket)))  # each bucket with all denser ones
        reached = max(supply, met[0])
        index = bisect_right(met, reached)
        if index == len(met):
            return None if reached <= supply else Margin(BUCKETS, 1.0)
        bucket = BUCKETS - index
        return Margin(bucket, (reached - met[index - 1]) / self._by_bucket[bucket])


@dataclass(slots=True)
class _Tenant:
    weight: float
    seen_s: float
    demand: Demand = field(default_factory=Demand)


class Market:
    """Owns the demand of all tenants and tells each its price.

    Every call says what time it is, which must not go back. A call costs a walk over the buckets at most,
    however many tenants there are.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()  # by last arrival
        self._active_weight = 0.0
        self._pool = Demand()
        self._waiting = Demand()
        self._others = Demand()  # slot-seconds a second
        self._others_asked = NOTHING_ASKED
        self._began_s: float | None = None
        self._zero_s = 0.0  # when an arrival's weight was 1
        self._correction = 0.0
        self._holding_s = 1.0
        self._observed_s: float | None = None
        self._turned_away_slot_s = 0.0  # in about the last second

    def arrive(
        self, tenant: str, weight: float, menu: Sequence[Increment], capacity: float, now_s: float
    ) -> None:
        """Counts an arrival. weight: of the tenant, above 0. capacity: slots of the pool."""
        if self._began_s is None:
            self._began_s = self._zero_s = now_s
        known = self._active(tenant, weight, now_s)
        grown = self._grown(now_s)
        for increment in menu:
            known.demand.add(increment.density, grown * increment.slot_s)
        own = self._own_margin(known, capacity, now_s)
        for increment in menu:
            # What is within its own share no price takes away.
            slot_s = grown * increment.slot_s
            secure = 1.0 if own is None else own.part_met(increment.density)
            self._pool.add(math.inf, secure * slot_s)
            self._pool.add(increment.density, (1 - secure) * slot_s)

    def wait(self, menu: Sequence[Increment]) -> None:
        """Counts one that waits."""
        for increment in menu:
            self._waiting.add(increment.density, increment.slot_s)

    def waited(self, menu: Sequence[Increment]) -> None:
        """One that was counted waits no more."""
        for increment in menu:
            self._waiting.add(increment.density, -increment.slot_s)

    def price(self, tenant: str, capacity: float, now_s: float) -> float:
        """What a slot-second costs a tenant now: the pool's price, or that of its own share if it is less."""
        known = self._tenants.get(tenant)
        own = None if known is None else self._own_margin(known, capacity, now_s)
        return 0.0 if own is None else min(own.price, self.pool_price(capacity, now_s))

    def observe(self, occupied: float, waiting: float, capacity: float, now_s: float) -> None:
        """Tells how many slots are in use now, and how many requests wait for one.

        While there is a price, an occupied part other than `TARGET_USE` shows that requests take more or less
        than was expected, and the supply is corrected for it. Those turned away are in use as well: that the
        pool is too slow for their promises is for others to make room.
        """
        passed_s = 0.0 if self._observed_s is None else min(1.0, now_s - self._observed_s)
        self._observed_s = now_s
        if capacity <= 0:
            return
        self._turned_away_slot_s *= math.exp(-passed_s)
        gain = CORRECTION_GAIN * passed_s / min(max(self._holding_s, FASTEST_S), SLOWEST_S)
        missing = TARGET_USE - (occupied + waiting + self._turned_away_slot_s) / capacity
        if missing > 0 and self.pool_price(capacity, now_s) == 0:
            # Nobody was kept away: that slots are idle shows nothing.
            self._correction *= math.exp(-gain)
            return
        moved = self._correction + gain * max(-1.0, missing)
        self._correction = min(max(moved, -MOST_CORRECTION), MOST_CORRECTION)

    def held(self, slot_s: float) -> None:
        """A request has had its slot for so long."""
        self._holding_s += (slot_s - self._holding_s) / 32

    def turn_away(self, menu: Sequence[Increment]) -> None:
        """Counts one whose promise an idle pool could have kept, and this one cannot."""
        self._turned_away_slot_s += menu[0].slot_s

    def _supply(self, capacity: float) -> float:
        return TARGET_USE * max(capacity, self._others_asked.capacity) * math.exp(self._correction)

    def asked(self, capacity: float, now_s: float) -> Asked:
        """What other controllers are to know of the demand here."""
        come_of = math.exp(-self._correction)
        asked = Demand().plus(self._pool, self._per_second(now_s) * come_of)
        asked = asked.plus(self._waiting, come_of / CLEAR_WAITING_S)
        return Asked(asked.by_bucket, capacity, self._active_weight)

    def hear(self, others: Asked) -> None:
        """What is asked of other controllers now, all together."""
        self._others_asked, self._others = others, Demand.of(others.by_bucket)

    def share(self, tenant: str) -> float:
        """The part of the pool that is a tenant's by weight among those that are active; 0 of one that is
        not.
        """
        known = self._tenants.get(tenant)
        return known.weight / self._weight if known is not None else 0.0

    @property
    def _weight(self) -> float:
        """Of all that share the pool. Who asks at several controllers has a share at each."""
        return self._active_weight + self._others_asked.weight

    def pool_price(self, capacity: float, now_s: float) -> float:
        """What a slot-second costs whoever asks for more than its share."""
        demand, per_s = self._pool, self._per_second(now_s)
        if per_s == 0:
            return 0.0
        if self._waiting.total > 0:
            demand = demand.plus(self._waiting, 1 / (CLEAR_WAITING_S * per_s))
        if self._others.total > 0:
            demand = demand.plus(self._others, math.exp(self._correction) / per_s)
        margin = demand.margin(self._supply(capacity) / per_s)
        return 0.0 if margin is None else margin.price

    def load(self, capacity: float, now_s: float) -> float:
        """What is asked for at price 0, over the capacity; infinite without any."""
        if capacity <= 0:
            return math.inf
        return (self._per_second(now_s) * self._pool.total + self._others.total) / capacity

    def _own_margin(self, tenant: _Tenant, capacity: float, now_s: float) -> Margin | None:
        """Where a tenant's own share ends."""
        share = self._supply(capacity) * tenant.weight / self._weight
        return tenant.demand.margin(share / self._per_second(now_s))

    def _active(self, name: str, weight: float, now_s: float) -> _Tenant:
        known = self._tenants.get(name)
        if known is None:
            known = self._tenants[name] = _Tenant(0.0, now_s)
        self._active_weight += weight - known.weight
        known.weight, known.seen_s = weight, now_s
        self._tenants.move_to_end(name)
        while (oldest := next(iter(self._tenants.items())))[1].seen_s < now_s - ACTIVE_S:
            self._active_weight -= oldest[1].weight
            del self._tenants[oldest[0]]
        return known

    def _grown(self, now_s: float) -> float:
        """The weight of an arrival at this time."""
        grown = math.exp((now_s - self._zero_s) / MEMORY_S)
        if grown > RESCALE_AT:
            for demand in (self._pool, *(tenant.demand for tenant in self._tenants.values())):
                demand.scale(1 / grown)
            self._zero_s, grown = now_s, 1.0
        return grown

    def _per_second(self, now_s: float) -> float:
        """Factor from summed weights to arrivals a second, as of now; 0 before the first."""
        if self._began_s is None:
            return 0.0
        # What was not watched yet is not taken for silence; the first moments are no rate at all.
        watched = -math.expm1(-max(now_s - self._began_s, MEMORY_S) / MEMORY_S)
        return math.exp((self._zero_s - now_s) / MEMORY_S) / (MEMORY_S * watched)
