"""Decides who runs now, where, and with what budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from controller.desk.flight import Flight, Placement
from controller.desk.peers import Alone, Peers, PoolNews
from controller.desk.returns import Paced, Returns
from controller.desk.tenants import Tenants
from controller.desk.waiting import Ticket, WaitingRoom
from controller.fleet.roster import Roster, Sent
from controller.fleet.worker import Worker
from controller.planning.decision import Ask, Decision, Refusal, RefusedFor
from controller.planning.needs import Ability, Needs
from controller.planning.options import Increment
from controller.planning.planner import Prospect
from controller.planning.price import CLEAR_WAITING_S, Market
from controller.planning.speed import SpeedEstimate
from controller.policy import Brownout, TenantPolicy
from controller.policy.units import format_duration as shown
from controller.state.store import Head

AHEAD = 0.125
"""Part of a worker's slots, at least one, that may wait at the worker itself: so that a slot that becomes
free is taken in the next step, and not a journey later.
"""
MOST_WAITING = 1024
"""Requests that may wait here: each tenant's part of them is its share by weight."""
LEAST_WAITING = 8
"""That any tenant may have waiting."""
LONGEST_WAIT_S = 60.0
"""Of a request without a deadline, and of one that is served however late."""
LOOK_AGAIN_S = 0.1
"""How often those that wait for a better price are looked at."""
DITHER = 0.12
"""Prices differ by up to this much from request to request, so that of many that are alike some are served
when not all can be.
"""

NO_WORKER_RETURNS_PER_S = 200.0
"""Requests that come again each second while there is no worker, and when there is one again: a part of what
a controller can decide.
"""
MOST_AHEAD = 0.5
"""The same for a controller that keeps its part of the pool filled: what it hears of the worker is old."""
PAY_BACK_S = 0.5
"""In which a tenant that was served less than one at another controller catches up."""

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

Verdict = tuple[Ticket, Flight | Refusal]


def spread_evenly() -> Callable[[], float]:
    """Numbers over [-1, 1] of which any few that follow each other are far apart: the multiples of the golden
    ratio, modulo 1 (a Weyl sequence).
    """
    numbers = itertools.count(1)
    return lambda: 2 * (next(numbers) * GOLDEN_RATIO % 1) - 1


class NoWorkerError(Exception):
    """No worker is available. lacking: what no worker that is known can do; empty where it is worth trying
    again, which is after retry_s.
    """

    def __init__(self, lacking: frozenset[Ability], retry_s: float) -> None:
        super().__init__()
        self.lacking = lacking
        self.retry_s = retry_s


class Desk:
    """Takes requests as they arrive and decides them when there is a place.

    Requests wait here and not at a worker, where nobody could be fair to them. Whatever may change who is
    next – an arrival, a worker's report, an end – is followed by a call of `decide`.
    """

    def __init__(
        self, roster: Roster, tenants: Tenants, spread: Callable[[], float], peers: Peers | None = None
    ) -> None:
        """spread: numbers spread evenly over [-1, 1]. peers: with whom the pool is shared."""
        self.tenants = tenants
        self.market = Market()
        self._roster = roster
        self._spread = spread
        self._peers = peers or Alone()
        self._waiting = WaitingRoom(self._peers)
        self._heads: tuple[Head, ...] = ()
        """Of other controllers' queues."""
        self._flying = 0
        """Requests that have a place."""
        self._returns = Returns()
        self._no_worker_returns = Paced(NO_WORKER_RETURNS_PER_S)
        self._shy: list[Ticket] = []
        self._look_again_s: float | None = None
        self._fresh: tuple[Ticket, Worker, SpeedEstimate, Prospect] | None = None
        """What was looked at for the arrival of this moment."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting) + len(self._shy)

    def look(self, ask: Ask, policy: TenantPolicy, now_s: float) -> tuple[Worker, Decision | Refusal]:
        """Where a request would go now and what it would get, without consequences. Raises NoWorkerError."""
        worker = self._choose(ask, now_s)
        prospect = self._prospect(ask, policy, worker, worker.estimate(ask.prompt_tokens, now_s), now_s)
        decision = prospect.decide(self.price(policy.name, now_s))
        if isinstance(decision, Refusal):
            decision = self._with_retry(decision, ask, policy, worker, now_s)
        return worker, decision

    def look_instead(self, placement: Placement, policy: TenantPolicy, now_s: float) -> Decision | Refusal:
        """What a request that has just been given a place would have got under another policy of its tenant,
        at the same speed and price.
        """
        prospect = self._prospect(placement.ask, policy, placement.worker, placement.expected, now_s)
        return prospect.decide(placement.decision.price)

    def price(self, tenant: str, now_s: float) -> float:
        """Of a slot-second for a tenant. Nothing where nobody runs or waits, however much one asks for."""
        if not self._roster.occupied and not self.waiting:
            return 0.0
        return self.market.price(tenant, self._roster.capacity, now_s)

    def arrive(self, ask: Ask, policy: TenantPolicy, now_s: float) -> Ticket | Refusal:
        """A request has come: it waits, be it for a moment, or is refused. Raises NoWorkerError."""
        worker = self._choose(ask, now_s)
        speed = worker.estimate(ask.prompt_tokens, now_s)
        prospect = self._prospect(ask, policy, worker, speed, now_s)
        menu = prospect.menu()
        if not prospect.choice:
            idle = worker.idle_estimate(ask.prompt_tokens, now_s)
            menu = self._prospect(ask, policy, worker, idle, now_s).menu()
            if menu:
                self.market.turn_away(menu)
        self.market.observe(self._roster.occupied, self.waiting, self._roster.capacity, now_s)
        self.market.arrive(policy.name, policy.weight, menu, self._roster.capacity, now_s)
        factor = 1 + DITHER * self._spread()
        why = self._turned_away(prospect, policy, factor, now_s)
        if why is not None:
            return self._refused(prospect.refusal(why), ask, policy, worker, menu, now_s)
        due_s = now_s + prospect.times.deadline_s
        give_up_s = now_s + min(prospect.patience_s(), LONGEST_WAIT_S)
        ticket = Ticket(ask, policy, now_s, due_s, give_up_s, menu, factor)
        self._waiting.push(ticket)
        self.market.wait(menu)
        self._fresh = (ticket, worker, speed, prospect)
        return ticket

    def decide(self, now_s: float) -> list[Verdict]:
        """Serves those that are next while there are places, and refuses those for whom it is too late."""
        self._look_at_shy(now_s)
        verdicts: list[Verdict] = []
        for ticket in self._waiting.expire(now_s):
            self.market.waited(ticket.menu)
            verdicts.append((ticket, self._too_late(ticket, now_s)))
        while (worker := self._roster.best()) is not None and self._may_send(worker):
            next_ticket = self._waiting.pop()
            if next_ticket is None:
                break
            verdict = self._place_anywhere(next_ticket, worker, now_s)
            if verdict is None:
                self._postpone(next_ticket, now_s)
            else:
                self.market.waited(next_ticket.menu)
                verdicts.append((next_ticket, verdict))
        self._fresh = None
        return verdicts

    def tell(self, now_s: float) -> PoolNews:
        """What other controllers are to know."""
        head = self._waiting.head()
        asked = self.market.asked(self._roster.capacity, now_s)
        return PoolNews(asked, () if head is None else (head,), self._waiting.reached)

    def hear(self, others: PoolNews) -> None:
        """What the other controllers want, all together. To be followed by a call of `decide`."""
        self._heads = others.heads
        self.market.hear(others.asked)
        elsewhere = min((head.served for head in others.heads), default=math.inf)
        self._waiting.hear(elsewhere, others.reached)

    def wake_s(self) -> float | None:
        """When `decide` must be called again if nothing happens before; None when never."""
        times = [self._waiting.next_expiry_s(), self._look_again_s]
        return min((when_s for when_s in times if when_s is not None), default=None)

    def leave(self, ticket: Ticket) -> None:
        """The caller of one that has not been decided has left."""
        if not ticket.waits and not ticket.shy:
            return
        self.market.waited(ticket.menu)
        self._waiting.remove(ticket)
        ticket.shy = False
        self.tenants[ticket.policy.name].standing.note_left()

    def _may_send(self, worker: Worker) -> bool:
        """Whether a worker may have one more.

        While others wait at other controllers too, this one keeps its part of the pool filled without
        waiting for news of the workers, and beyond it takes only slots that stand idle. So nobody races for
        the slot that becomes free, and nothing stands idle for one that does not come.
        """
        mine, load = self._waiting.head(), worker.load
        if mine is None or not self._heads:
            return worker.has_room(AHEAD)
        if load.free_slots > load.waiting:
            return True
        part = self._part(mine)
        return self._flying < part + max(1.0, AHEAD * part) and load.waiting < max(
            2, int(MOST_AHEAD * worker.limits.slots)
        )

    def _part(self, mine: Head) -> float:
        """Slots of the pool that are this controller's: by the weight of those that wait here and elsewhere,
        and more where the next here was served less than the next elsewhere.
        """
        weight = mine.weight + sum(head.weight for head in self._heads)
        part = self._roster.capacity * mine.weight / weight
        behind = min(self._heads, key=self._served)
        both = mine.weight * behind.weight / (mine.weight + behind.weight)
        return part + both * (self._served(behind) - mine.served) / PAY_BACK_S

    def _served(self, head: Head) -> float:
        """What is known of it by now."""
        return max(head.served, self._peers.served(head.tenant))

    def move(self, flight: Flight, resuming: bool) -> bool:
        """Has a flight whose worker was lost go on at another, before all that wait: its place is its
        by right. resuming: after what it has generated. Returns whether there is one.
        """
        needs = flight.placement.ask.needs
        worker = self._roster.best(needs.resumed(flight.worker.limits.model) if resuming else needs)
        if worker is None:
            return False
        flight.move(worker, self._roster.send(worker, flight.placement.ask.prompt_tokens))
        return True

    def hedge(self, flight: Flight) -> tuple[Worker, Sent] | None:
        """A place at a second worker for a flight that waits for its first token; None when none is free, or
        others wait for it.
        """
        needs = flight.placement.ask.needs
        worker = None if self.waiting else self._roster.another(flight.worker, needs)
        if worker is None:
            return None
        return worker, self._roster.send(worker, flight.placement.ask.prompt_tokens)

    def charge_hedge(self, flight: Flight, slot_s: float) -> None:
        """Counts the time of the one of two workers that was not needed as served."""
        policy = flight.placement.policy
        self._waiting.charge(policy.name, policy.weight, slot_s)

    def best(self, needs: Needs, now_s: float) -> Worker:
        """The worker that a request would go to now. Raises NoWorkerError."""
        worker = self._roster.best(needs)
        if worker is None:
            lacking = frozenset[Ability]() if self._roster.anyone(needs) else needs.abilities
            raise NoWorkerError(lacking, self._no_worker_returns.next_s(self._spread(), now_s))
        return worker

    def _choose(self, ask: Ask, now_s: float) -> Worker:
        return self._roster.choose(ask) or self.best(ask.needs, now_s)

    def _prospect(
        self, ask: Ask, policy: TenantPolicy, worker: Worker, speed: SpeedEstimate, now_s: float
    ) -> Prospect:
        tenant = self.tenants[policy.name]
        lengths = tenant.lengths.estimate(now_s, ask.prompt_tokens)
        return Prospect.of(
            ask,
            tenant.quality.apply(policy, lengths.reasoning, now_s),
            lengths,
            speed,
            worker.limits.max_sequence_tokens,
            tenant.calibration.level(policy.objectives.share),
        )

    def _turned_away(
        self, prospect: Prospect, policy: TenantPolicy, price_factor: float, now_s: float
    ) -> RefusedFor | None:
        """Why an arrival does not even wait."""
        if not prospect.choice:
            return RefusedFor.PROMISE
        if policy.brownout is Brownout.REJECT and not prospect.worth_it(
            price_factor * self.price(policy.name, now_s)
        ):
            return RefusedFor.PRICE
        if self._waiting.size(policy.name) >= max(
            LEAST_WAITING, MOST_WAITING * self.market.share(policy.name)
        ):
            return RefusedFor.CROWD
        return None

    def _place_anywhere(self, ticket: Ticket, worker: Worker, now_s: float) -> Flight | Refusal | None:
        """As `_place`; None also when this worker has a place, but none that could take the request has."""
        chosen: Worker | None = None
        if self._fresh is not None and self._fresh[0] is ticket:
            chosen = self._fresh[1]
        if chosen is None or not (chosen is worker or self._roster.has_slot(chosen)):
            chosen = self._roster.choose(ticket.ask)
            if chosen is None or not (chosen is worker or self._may_send(chosen)):
                return None
        return self._place(ticket, chosen, now_s)

    def _place(self, ticket: Ticket, worker: Worker, now_s: float) -> Flight | Refusal | None:
        """Gives a request a place, or refuses it; None when it had rather wait."""
        ask, policy = ticket.ask, ticket.policy
        if self._fresh is not None and self._fresh[0] is ticket and self._fresh[1] is worker:
            _, _, speed, prospect = self._fresh
        else:
            speed = worker.estimate(ask.prompt_tokens, now_s)
            speed = replace(speed, wait_s=speed.wait_s + now_s - ticket.arrived_s)
            prospect = self._prospect(ask, policy, worker, speed, now_s)
        decision = prospect.decide(ticket.price_factor * self.price(policy.name, now_s))
        if isinstance(decision, Refusal):
            if decision.reason is RefusedFor.PRICE and policy.brownout is Brownout.QUEUE:
                return None
            return self._refused(decision, ask, policy, worker, ticket.menu, now_s)
        tenant = self.tenants[policy.name]
        tenant.standing.note_decided(decision.brownout)
        slot_s = prospect.slot_s(decision.budget_tokens)
        self._waiting.charge(policy.name, policy.weight, slot_s)

        def closed(used_slot_s: float) -> None:
            self._flying -= 1
            self._waiting.charge(policy.name, policy.weight, used_slot_s - slot_s)
            if used_slot_s > 0:
                self.market.held(used_slot_s)

        self._flying += 1
        return Flight(
            Placement(ask, policy, worker, speed, prospect, decision, ticket.arrived_s),
            tenant,
            self._roster.send(worker, ask.prompt_tokens),
            price=lambda when_s: self.price(policy.name, when_s),
            closed=closed,
        )

    def _postpone(self, ticket: Ticket, now_s: float) -> None:
        ticket.shy = True
        self._shy.append(ticket)
        if self._look_again_s is None:
            self._look_again_s = now_s + LOOK_AGAIN_S

    def _look_at_shy(self, now_s: float) -> None:
        """Those for whom the price was too high wait for a place again."""
        if self._look_again_s is None or now_s < self._look_again_s:
            return
        shy, self._shy, self._look_again_s = self._shy, [], None
        for ticket in shy:
            if ticket.shy:
                ticket.shy = False
                self._waiting.push(ticket)

    def _too_late(self, ticket: Ticket, now_s: float) -> Refusal:
        self.tenants[ticket.policy.name].standing.note_refused(RefusedFor.PROMISE)
        waited_s = now_s - ticket.arrived_s
        return Refusal(
            RefusedFor.PROMISE,
            None if math.isinf(ticket.due_s) else ticket.due_s - ticket.arrived_s,
            ticket.policy.objectives.share,
            waited_s,
            f"waited {shown(waited_s)} for a place; refused, since not every promise can be kept any more",
            self._retry_s(ticket.policy.name, ticket.menu, now_s),
        )

    def _refused(
        self,
        refusal: Refusal,
        ask: Ask,
        policy: TenantPolicy,
        worker: Worker,
        menu: Sequence[Increment],
        now_s: float,
    ) -> Refusal:
        self.tenants[policy.name].standing.note_refused(refusal.reason)
        refusal = self._with_retry(refusal, ask, policy, worker, now_s)
        if refusal.retry_s is None:
            return refusal
        return replace(refusal, retry_s=self._retry_s(policy.name, menu, now_s))

    def _retry_s(self, tenant: str, menu: Sequence[Increment], now_s: float) -> float:
        """When one that is refused is to come again."""
        slot_s = menu[0].slot_s if menu else 0.0
        return self._returns.next_s(
            tenant, slot_s, self._roster.capacity * self.market.share(tenant), self._spread(), now_s
        )

    def _with_retry(
        self, refusal: Refusal, ask: Ask, policy: TenantPolicy, worker: Worker, now_s: float
    ) -> Refusal:
        """With when to try again, unless an idle pool would refuse it too."""
        if refusal.reason is RefusedFor.PROMISE:
            idle = worker.idle_estimate(ask.prompt_tokens, now_s)
            if not self._prospect(ask, policy, worker, idle, now_s).choice:
                return refusal
        return replace(refusal, retry_s=CLEAR_WAITING_S)
