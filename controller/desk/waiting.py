"""Who waits for a place, and who is next."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

from controller.desk.peers import Alone, Peers
from controller.planning.decision import Ask
from controller.planning.options import Increment
from controller.policy import TenantPolicy
from controller.state.store import Head


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that has arrived and is not decided.

    due_s: its deadline, infinite without one. give_up_s: when even the fastest way to serve it is too late.
    menu: what it is counted with as demand while it waits. price_factor: on every price that it is asked.
    waits: for a place. shy: for a better price.
    """

    ask: Ask
    policy: TenantPolicy
    arrived_s: float
    due_s: float
    give_up_s: float
    menu: tuple[Increment, ...] = ()
    price_factor: float = 1.0
    waits: bool = False
    shy: bool = False


@dataclass(slots=True)
class _Queue:
    """One tenant's: by priority, then by deadline."""

    tickets: list[tuple[int, float, int, Ticket]] = field(default_factory=list)
    size: int = 0
    entry: int = -1
    weight: float = 0.0


class WaitingRoom:
    """Fair between tenants by weighted slot-seconds served; earliest deadline first within a tenant.

    Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): the tenant that
    was served least for its weight is next; one that comes back from silence begins where the least served of
    those who wait stand, so that nobody saves up. A request with a lower priority number goes before any
    other.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        """peers: who count what tenants were served; None counts what this room serves."""
        self._peers = peers or Alone()
        self._queues: dict[str, _Queue] = {}
        self._order: list[
            tuple[int, float, int, str]
        ] = []  # (priority, served, entry, tenant); old ones stay
        self._expiry: list[tuple[float, int, Ticket]] = []
        self._counter = itertools.count()
        self._size = 0
        self._weight = 0.0
        self._reached = 0.0
        self._elsewhere = math.inf

    def __len__(self) -> int:
        return self._size

    def size(self, tenant: str) -> int:
        """How many of a tenant's requests wait."""
        queue = self._queues.get(tenant)
        return queue.size if queue else 0

    @property
    def reached(self) -> float:
        """What the tenants that were next had been served, at most: where one begins that comes back."""
        return self._reached

    def head(self) -> Head | None:
        """Who is next; None when nobody waits."""
        while self._order and self._queues[self._order[0][3]].entry != self._order[0][2]:
            heapq.heappop(self._order)
        if not self._order:
            return None
        _, served, _, tenant = self._order[0]
        return Head(tenant, served, self._queues[tenant].size, self._weight)

    def push(self, ticket: Ticket) -> None:
        """Has a ticket wait."""
        queue = self._queues.setdefault(ticket.policy.name, _Queue())
        if not queue.size:
            self._peers.lift_served(ticket.policy.name, min(self._reached, self._elsewhere))
            queue.weight = ticket.policy.weight
            self._weight += queue.weight
        ticket.waits = True
        queue.size += 1
        self._size += 1
        number = next(self._counter)
        heapq.heappush(queue.tickets, (ticket.policy.priority, ticket.due_s, number, ticket))
        heapq.heappush(self._expiry, (ticket.give_up_s, number, ticket))
        if len(self._expiry) > 4 * self._size + 64:
            self._expiry = [entry for entry in self._expiry if entry[2].waits]
            heapq.heapify(self._expiry)
        self._rank(ticket.policy.name, queue)

    def pop(self) -> Ticket | None:
        """The next; None when nobody waits."""
        while self._order:
            _, served, entry, tenant = heapq.heappop(self._order)
            queue = self._queues[tenant]
            if entry != queue.entry:
                continue
            self._drop_gone(queue)
            if not queue.tickets:
                continue
            ticket = heapq.heappop(queue.tickets)[3]
            self._reached = max(self._reached, min(served, self._elsewhere))
            self._leave(ticket)
            return ticket
        return None

    def remove(self, ticket: Ticket) -> None:
        """Its caller has left. Has no effect on one that does not wait."""
        if ticket.waits:
            self._leave(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Takes out those whose time to give up has come."""
        expired = []
        while self._expiry and (not self._expiry[0][2].waits or self._expiry[0][0] <= now_s):
            ticket = heapq.heappop(self._expiry)[2]
            if ticket.waits:
                self._leave(ticket)
                expired.append(ticket)
        return expired

    def next_expiry_s(self) -> float | None:
        """When `expire` has something to do; None when nobody waits."""
        while self._expiry and not self._expiry[0][2].waits:
            heapq.heappop(self._expiry)
        return self._expiry[0][0] if self._expiry else None

    def charge(self, tenant: str, weight: float, slot_s: float) -> None:
        """Counts what a tenant was served, or gives back what it did not use, where `slot_s` is negative."""
        self._peers.serve(tenant, slot_s / weight)
        queue = self._queues.get(tenant)
        if queue is not None and queue.size:
            self._rank(tenant, queue)

    def hear(self, elsewhere: float, reached: float) -> None:
        """Others may have served the tenants that wait. elsewhere: what the least served of those that wait
        at other controllers was served. reached: as there.
        """
        self._elsewhere = elsewhere
        self._reached = max(self._reached, reached)
        for tenant in [tenant for _, _, entry, tenant in self._order if self._queues[tenant].entry == entry]:
            self._rank(tenant, self._queues[tenant])

    def _leave(self, ticket: Ticket) -> None:
        ticket.waits = False
        tenant = ticket.policy.name
        queue = self._queues[tenant]
        queue.size -= 1
        self._size -= 1
        if queue.size:
            self._rank(tenant, queue)
        else:
            self._weight = self._weight - queue.weight if self._size else 0.0
            queue.tickets.clear()
            queue.entry = -1

    def _rank(self, tenant: str, queue: _Queue) -> None:
        self._drop_gone(queue)
        queue.entry = next(self._counter)
        served = self._peers.served(tenant)
        heapq.heappush(self._order, (queue.tickets[0][0], served, queue.entry, tenant))
        if len(self._order) > 4 * self._size + 64:
            self._order = [entry for entry in self._order if self._queues[entry[3]].entry == entry[2]]
            heapq.heapify(self._order)

    @staticmethod
    def _drop_gone(queue: _Queue) -> None:
        while queue.tickets and not queue.tickets[0][3].waits:
            heapq.heappop(queue.tickets)
