"""What the rest of a controller sees of the state that it shares with others.

Fairness, calibration and price are read and changed here without waiting: a background task tells the store
what changed and takes up what others did, several times a second, in one round trip. Only limits ask the
store for each request, since they must be exact. When the store is away, nothing waits for it: limits are
divided by the number of controllers, all else goes on from what was known, and what happened meanwhile is
told when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.state.local_share import LocalShare
from controller.state.store import (
    Ask,
    Demand,
    Head,
    Level,
    Limit,
    Limits,
    News,
    Store,
    StoreError,
    TenantNews,
    Verdict,
)
from controller.state.tally import Tally

log = logging.getLogger(__name__)

MAX_TENANTS = 1000
"""Told of in one exchange; others wait for the next."""
MAX_RELEASED = 1000
"""Ended leases remembered for a store that is away; older ones run out there by themselves."""
MEAN_OF_LAST = 16
"""Requests that the mean time of a place is taken over."""
FREE_PLACE_S = (0.05, 10.0)
"""Least and most time after which a request that finds no place is told to come back."""


@dataclass(frozen=True, slots=True)
class Timings:
    """sync_s: between exchanges. call_s: an answer of the store that takes longer is not waited for. alive_s:
    a controller not heard of for so long does not count. lease_ttl_s: after so long the places of a dead
    controller's requests are free. first_retry_s, last_retry_s: pauses between attempts to reach the store.
    """

    sync_s: float = 0.25
    call_s: float = 0.25
    alive_s: float = 3.0
    lease_ttl_s: float = 15.0
    first_retry_s: float = 0.1
    last_retry_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Outage:
    """The store is away. since_s: by the controller's clock. why: in one line."""

    since_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """limit: the one that is reached. retry_s: when the request may come in, above 0."""

    limit: Limit
    retry_s: float


@dataclass(slots=True)
class _Lease:
    began_s: float
    in_store: bool


@dataclass(slots=True)
class _Tenant:
    tally: Tally
    share: LocalShare = field(default_factory=LocalShare)
    held: dict[str, _Lease] = field(default_factory=dict)
    released: dict[str, None] = field(default_factory=dict)
    mean_held_s: float = 1.0

    def release(self, lease: str) -> None:
        self.released[lease] = None
        while len(self.released) > MAX_RELEASED:
            del self.released[next(iter(self.released))]


class Permit:
    """A request that was let in."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end: Callable[[int], None] | None = end

    def end(self, tokens: int) -> None:
        """Frees its place and counts the tokens that it really took, prompt and output. Only the first call
        counts.
        """
        end, self._end = self._end, None
        if end is not None:
            end(tokens)


class SharedState:
    """One controller's."""

    def __init__(
        self,
        store: Store,
        level: Level,
        begin_offset: float,
        clock: Callable[[], float],
        spread: Callable[[], float],
        new_id: Callable[[], str],
        timings: Timings | None = None,
    ) -> None:
        """level, begin_offset: of calibration offsets. clock: seconds from any beginning. spread: a random
        number in [0, 1). new_id: an id that no other controller, before, now or later, has or gives.
        """
        self._store = store
        self._level = level
        self._begin_offset = begin_offset
        self._clock = clock
        self._spread = spread
        self._new_id = new_id
        self._timings = timings or Timings()
        self.controller = new_id()
        self.controllers = 1
        """That are alive, this one among them, as far as is known."""
        self._tenants: dict[str, _Tenant] = {}
        self._touched: dict[str, None] = {}
        self._own_demand: dict[str, Demand] = {}
        self._others_demand: dict[str, list[Demand]] = {}
        self.before_exchange: Callable[[], None] = lambda: None
        """Called before each, to publish what is to be told."""
        self.after_exchange: Callable[[], None] = lambda: None
        """Called after each that was tried: what is known of others may have changed."""
        self._outage: Outage | None = None
        self._failures = 0
        self._renew_s = clock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def outage(self) -> Outage | None:
        """Whether the store is away, since when and why."""
        return self._outage

    async def start(self, required: bool) -> None:
        """Meets the store for the first time and goes on in the background. Raises StoreError when it is
        required and cannot be reached.
        """
        await self.synchronise()
        if required and self._outage is not None:
            raise StoreError(self._outage.why)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Tells the store what is left to tell, if it is there, and leaves it."""
        # A client that is cancelled in mid-call may swallow it.
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            if self._outage is None:
                await self.synchronise()
        with contextlib.suppress(StoreError):
            await self._store.close()

    # Without waiting.

    def served(self, tenant: str) -> float:
        """What a tenant was served by all controllers, in whatever unit they count."""
        return self._touch(tenant).tally.served

    def serve(self, tenant: str, amount: float) -> None:
        """Adds to what a tenant was served; negative where it did not use what was counted before."""
        self._touch(tenant).tally.serve(amount)

    def lift_served(self, tenant: str, at_least: float) -> None:
        """Raises what a tenant was served to this, so that nobody saves up while it asks for nothing."""
        self._touch(tenant).tally.lift(at_least)

    def offset(self, tenant: str) -> float:
        """A tenant's calibration offset, moved by all controllers."""
        return self._touch(tenant).tally.offset

    def step_offset(self, tenant: str, by: float) -> None:
        """Moves a tenant's calibration offset, within the range."""
        self._touch(tenant).tally.step(by, self._level)

    def publish_demand(self, pool: str, demand: Demand) -> None:
        """What this controller's callers ask of a pool now; counts until the next."""
        self._own_demand[pool] = demand

    def others_demand(self, pool: str) -> Demand:
        """What the other controllers' callers ask of a pool: the sum, since each sees its own callers; the
        largest capacity that one sees, since all see the same workers, though not all at once; and what was
        reached, the most.
        """
        views = self._others_demand.get(pool, ())
        by_price = (sum(row) for row in itertools.zip_longest(*(v.by_price for v in views), fillvalue=0.0))
        return Demand(
            tuple(by_price),
            max((view.capacity for view in views), default=0.0),
            sum(view.weight for view in views),
            reached=max((view.reached for view in views), default=0.0),
        )

    def others_heads(self, pool: str) -> list[Head]:
        """Of the other controllers' queues for a pool, as last told. None in an outage: nobody can tell for
        how long they stayed so.
        """
        views = self._others_demand.get(pool, ()) if self._outage is None else ()
        return [view.head for view in views if view.head is not None]

    # With one round trip at most.

    async def admit(self, tenant: str, limits: Limits, tokens: int) -> Permit | Refused:
        """Whether a request may come in. tokens: that it is expected to take, prompt and output."""
        if limits == Limits():
            return Permit(lambda _: None)
        mine = self._tenant(tenant)
        lease = self._new_id()
        if self._outage is None:
            ask = Ask(tenant, limits, lease, tokens, self._timings.lease_ttl_s, tuple(mine.released))
            verdict = await self._ask(mine, ask)
            if verdict is not None:
                return self._answer(tenant, limits, lease, tokens, verdict, in_store=True)
        else:
            verdict = self._decide_alone(mine, limits, tokens)
            if verdict.refused is None:
                mine.tally.charge(
                    limits.rate.cost_us(1) if limits.rate else 0,
                    limits.tokens.cost_us(tokens) if limits.tokens else 0,
                )
            return self._answer(tenant, limits, lease, tokens, verdict, in_store=False)
        # The store may yet have counted it in. It is not charged again, and its lease, which has a name, is
        # told of in any case.
        verdict = self._decide_alone(mine, limits, tokens)
        if verdict.refused is not None:
            mine.release(lease)
        return self._answer(tenant, limits, lease, tokens, verdict, in_store=False)

    async def _ask(self, mine: _Tenant, ask: Ask) -> Verdict | None:
        """The store's verdict; None when there is none to be had."""
        try:
            async with asyncio.timeout(self._timings.call_s):
                verdict = await self._store.admit(ask)
        except (StoreError, TimeoutError) as error:
            self._failed(error)
            return None
        except asyncio.CancelledError:
            # The caller has left, and the store may have counted it in.
            mine.release(ask.lease)
            self._touched[ask.tenant] = None
            raise
        for lease in ask.released:
            mine.released.pop(lease, None)
        return verdict

    def _decide_alone(self, mine: _Tenant, limits: Limits, tokens: int) -> Verdict:
        now_us = round(self._clock() * 1e6)
        return mine.share.decide(limits, tokens, len(mine.held), self.controllers, now_us)

    def _answer(
        self, tenant: str, limits: Limits, lease: str, tokens: int, verdict: Verdict, in_store: bool
    ) -> Permit | Refused:
        mine = self._touch(tenant)
        if verdict.refused is Limit.CONCURRENCY:
            least, most = FREE_PLACE_S
            return Refused(
                verdict.refused, min(max(mine.mean_held_s / (limits.concurrency or 1), least), most)
            )
        if verdict.refused is not None:
            return Refused(verdict.refused, verdict.retry_s)
        if limits.concurrency is not None:
            mine.held[lease] = _Lease(self._clock(), in_store)

        def end(used: int) -> None:
            if limits.tokens is not None:
                mine.tally.charge(0, limits.tokens.cost_us(used) - limits.tokens.cost_us(tokens))
            held = mine.held.pop(lease, None)
            if held is not None:
                mine.mean_held_s += (self._clock() - held.began_s - mine.mean_held_s) / MEAN_OF_LAST
                mine.release(lease)
                self._wake.set()
            self._touched[tenant] = None

        return Permit(end)

    # In the background.

    async def _run(self) -> None:
        while not self._stopping:
            if self._outage is not None:
                await asyncio.sleep(self._retry_s())
            else:
                # Not wait_for, which in Python 3.11 may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timings.sync_s):
                        await self._wake.wait()
            await self.synchronise()

    def _retry_s(self) -> float:
        pause_s: float = self._timings.first_retry_s * 2.0 ** min(self._failures, 16)
        # Controllers that lost the store together do not come back together.
        return min(pause_s, self._timings.last_retry_s) * (0.5 + self._spread() / 2)

    async def synchronise(self) -> None:
        """One exchange with the store."""
        self.before_exchange()
        try:
            await self._exchange()
        finally:
            self.after_exchange()

    async def _exchange(self) -> None:
        self._wake.clear()
        now_s = self._clock()
        renew = now_s >= self._renew_s
        if renew:
            self._touched |= dict.fromkeys(name for name, tenant in self._tenants.items() if tenant.held)
        names = list(itertools.islice(self._touched, MAX_TENANTS))
        for name in names:
            del self._touched[name]
        told = [self._news(name, renew) for name in names]
        timings = self._timings
        news = News(
            self.controller, told, dict(self._own_demand), self._level, timings.alive_s, timings.lease_ttl_s
        )
        try:
            async with asyncio.timeout(timings.call_s):
                view = await self._store.exchange(news)
        except (StoreError, TimeoutError) as error:
            self._touched = dict.fromkeys(names) | self._touched
            self._failed(error)
            self._failures += 1
            return
        if self._outage is not None:
            log.warning("the store is back after %.1f s", now_s - self._outage.since_s)
        self._outage, self._failures = None, 0
        if view.forgot:
            self._renew_s = now_s
        elif renew:
            self._renew_s = now_s + timings.lease_ttl_s / 3
        for each in told:
            tenant = self._tenants[each.tenant]
            tenant.tally.answered(view.tenants[each.tenant], self._level)
            for lease in each.held:
                if lease in tenant.held:
                    tenant.held[lease].in_store = True
            for lease in each.released:
                tenant.released.pop(lease, None)
        self.controllers = max(1, view.controllers)
        for pool, demands in view.demands.items():
            self._others_demand[pool] = [d for name, d in demands.items() if name != self.controller]
        if self._touched and len(names) == MAX_TENANTS:
            self._wake.set()

    def _news(self, name: str, renew: bool) -> TenantNews:
        tenant = self._tenants[name]
        held = tuple(lease for lease, state in tenant.held.items() if renew or not state.in_store)
        return tenant.tally.news(name, held, tuple(tenant.released))

    def _failed(self, error: Exception) -> None:
        if self._outage is not None:
            return
        why = str(error) or f"no answer within {self._timings.call_s:g} s"
        self._outage = Outage(self._clock(), why)
        self._renew_s = self._outage.since_s  # it may come back without the leases that it had
        self._wake.set()
        log.warning("the store is away, so this controller decides alone: %s", why)

    def _tenant(self, name: str) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant(Tally(self._begin_offset))
        return tenant

    def _touch(self, name: str) -> _Tenant:
        """The tenant; what others do with it is asked for next time."""
        self._touched[name] = None
        return self._tenant(name)
