"""Several controllers' desks before one pool, on a clock that is moved by hand. Nothing is real but what
decides: desks, what they share, and how late they hear of it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from controller.desk import Desk, Done, Flight, Tenants, Ticket
from controller.desk.desk import spread_evenly
from controller.desk.peers import PoolNews
from controller.fleet import Roster
from controller.planning.calibration import BEGIN, FURTHEST
from controller.planning.decision import Refusal
from controller.planning.price import Asked
from controller.policy import TenantPolicy
from controller.state.memory import MemoryStore
from controller.state.shared import SharedState
from controller.state.store import Demand, Level
from curfew.v1 import worker_pb2
from tests.controller.desk.pool import ASK, worker

ONE_WAY_S = 0.001
TOLD_EVERY_S = 0.1
POLLED_EVERY_S = 1.0
EXCHANGE_S = 0.25

Happen = Callable[[float], None]


@dataclass(eq=False)
class Job:
    """A request at the engine."""

    door: Door
    flight: Flight
    seconds: float
    submitted_s: float = 0.0
    began_s: float = math.nan


class Clock:
    """Has things happen in order of time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Happen]] = []
        self._number = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def at(self, when_s: float, happen: Happen) -> None:
        heapq.heappush(self._events, (when_s, next(self._number), happen))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen(self.now_s)
        self.now_s = until_s


class Engine:
    """Slots, and a queue in the order of arrival: it knows no tenant."""

    def __init__(self, slots: int, clock: Clock) -> None:
        self.slots = slots
        self.running: set[Job] = set()
        self.busy_slot_s = 0.0
        self._waiting: deque[Job] = deque()
        self._clock = clock

    def load(self) -> worker_pb2.WorkerLoad:
        return worker_pb2.WorkerLoad(
            running=len(self.running),
            waiting=len(self._waiting),
            free_slots=self.slots - len(self.running),
        )

    def submit(self, job: Job, now_s: float) -> None:
        job.submitted_s = now_s
        self._waiting.append(job)
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        while self._waiting and len(self.running) < self.slots:
            job = self._waiting.popleft()
            job.began_s = now_s
            self.running.add(job)
            self._clock.at(now_s + ONE_WAY_S, partial(job.door.started, job, self.load()))
            self._clock.at(now_s + job.seconds, partial(self._end, job))

    def _end(self, job: Job, now_s: float) -> None:
        self.running.remove(job)
        self.busy_slot_s += job.seconds
        self._begin(now_s)
        self._clock.at(now_s + ONE_WAY_S, partial(job.door.ended, job, self.load(), now_s))


@dataclass
class Door:
    """A controller. served_slot_s: by tenant. silent: it does nothing any more."""

    engine: Engine
    clock: Clock
    state: SharedState
    seconds: Callable[[], float]
    served_slot_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    silent: bool = False

    def __post_init__(self) -> None:
        self._known = worker("w:1", self.engine.slots)
        self._roster = Roster([self._known])
        self.desk = Desk(self._roster, Tenants(self.state), spread_evenly(), self.state)
        self._open: dict[Ticket, TenantPolicy] = {}
        self.state.before_exchange, self.state.after_exchange = self._tell, self._hear
        self.clock.at(0.0, self._poll)
        self.clock.at(0.0, self._follow)

    def keep_asking(self, tenant: TenantPolicy, callers: int) -> None:
        """So many callers of a tenant, each of whom asks as soon as it was answered."""
        for number in range(callers):
            self.clock.at(self.clock.now_s + number * 0.003, partial(self._ask, tenant))

    def _ask(self, tenant: TenantPolicy, now_s: float) -> None:
        if self.silent:
            return
        ticket = self.desk.arrive(ASK, tenant, now_s)
        if isinstance(ticket, Refusal):
            self._refused(tenant, ticket, now_s)
            return
        self._open[ticket] = tenant
        self._decide(now_s)

    def started(self, job: Job, load: worker_pb2.WorkerLoad, now_s: float) -> None:
        job.flight.start(ASK.prompt_tokens)
        self._take(load)

    def ended(self, job: Job, load: worker_pb2.WorkerLoad, ended_s: float, now_s: float) -> None:
        tenant = job.flight.placement.policy
        self.served_slot_s[tenant.name] += job.seconds
        done = Done(
            prompt_tokens=ASK.prompt_tokens,
            output_tokens=20,
            reasoning_tokens=0,
            answer_tokens=20,
            stopped=None,
            queue_s=job.began_s - job.submitted_s,
            first_token_s=job.began_s - job.submitted_s + 0.005,
            total_s=ended_s - job.submitted_s,
            decode_steps=19,
            mean_batch_size=float(self.engine.slots),
        )
        job.flight.end(done, now_s)
        self._ask(tenant, now_s)
        self._take(load)

    def _take(self, load: worker_pb2.WorkerLoad) -> None:
        self._roster.take_load(self._known, load, self.clock.now_s)
        self._decide(self.clock.now_s)

    def _decide(self, now_s: float) -> None:
        if self.silent:
            return
        for ticket, verdict in self.desk.decide(now_s):
            tenant = self._open.pop(ticket)
            if isinstance(verdict, Refusal):
                self._refused(tenant, verdict, now_s)
            else:
                job = Job(self, verdict, self.seconds())
                self.clock.at(now_s + ONE_WAY_S, partial(self.engine.submit, job))

    def _refused(self, tenant: TenantPolicy, refusal: Refusal, now_s: float) -> None:
        self.clock.at(now_s + (refusal.retry_s or 1.0), partial(self._ask, tenant))

    def _follow(self, now_s: float) -> None:
        """What the streams tell."""
        if any(job.door is self for job in self.engine.running):
            self._take(self.engine.load())
        self.clock.at(now_s + TOLD_EVERY_S, self._follow)

    def _poll(self, now_s: float) -> None:
        self._take(self.engine.load())
        self.clock.at(now_s + POLLED_EVERY_S, self._poll)

    def _tell(self) -> None:
        news = self.desk.tell(self.clock.now_s)
        asked = news.asked
        (head,) = news.heads or (None,)
        demand = Demand(asked.by_bucket, asked.capacity, asked.weight, head, news.reached)
        self.state.publish_demand("pool", demand)

    def _hear(self) -> None:
        others = self.state.others_demand("pool")
        asked = Asked(others.by_price, others.capacity, others.weight)
        self.desk.hear(PoolNews(asked, tuple(self.state.others_heads("pool")), others.reached))
        self._decide(self.clock.now_s)


class Doors:
    """Controllers with one store."""

    def __init__(self, count: int, slots: int, seconds: tuple[float, float], seed: int = 0) -> None:
        """seconds: that requests take, evenly between these."""
        self.random = Random(seed)
        self.clock = Clock()
        self.engine = Engine(slots, self.clock)
        store, ids = MemoryStore(self.clock), itertools.count()
        self.doors = [
            Door(
                self.engine,
                self.clock,
                SharedState(
                    store,
                    Level(-FURTHEST, FURTHEST),
                    BEGIN,
                    self.clock,
                    lambda: 0.5,
                    lambda: f"id{next(ids)}",
                ),
                lambda: self.random.uniform(*seconds),
            )
            for _ in range(count)
        ]
        self._due = [(self.random.uniform(0, EXCHANGE_S), number) for number in range(count)]

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        asyncio.run(self._run(self.clock.now_s + seconds))

    async def _run(self, until_s: float) -> None:
        heapq.heapify(self._due)
        while self._due[0][0] <= until_s:
            when_s, number = heapq.heappop(self._due)
            self.clock.run(when_s)
            if not self.doors[number].silent:
                await self.doors[number].state.synchronise()
            heapq.heappush(self._due, (when_s + EXCHANGE_S, number))
        self.clock.run(until_s)

    def silence(self, number: int) -> None:
        """A controller says and does nothing any more; what it had running ends."""
        self.doors[number].silent = True

    def serve(self, seconds: float) -> tuple[dict[str, float], float]:
        """Slot-seconds by tenant that all controllers serve from now on in so long, and the part of the
        pool's that is used.
        """
        before, busy_slot_s = self._served(), self.engine.busy_slot_s
        self.run(seconds)
        served = {tenant: slot_s - before.get(tenant, 0.0) for tenant, slot_s in self._served().items()}
        return served, (self.engine.busy_slot_s - busy_slot_s) / (self.engine.slots * seconds)

    def _served(self) -> dict[str, float]:
        tenants = {tenant for door in self.doors for tenant in door.served_slot_s}
        return {tenant: sum(door.served_slot_s[tenant] for door in self.doors) for tenant in tenants}
