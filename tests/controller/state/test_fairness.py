"""Shares of the pool, over all controllers, by the waiting room's own rule."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from controller.desk.waiting import Ticket, WaitingRoom
from controller.planning.decision import Ask
from controller.policy import TenantPolicy, parse_policy
from controller.state.shared import SharedState
from tests.controller.state.conftest import Ids, OpenStore
from tests.controller.state.test_shared import shared

TENANTS = parse_policy(
    "apiVersion: curfew/v1\ntenants:\n  - {name: heavy, weight: 4}\n  - {name: light, weight: 1}\n", "", None
).tenants


class Door:
    """A controller, as far as it decides who is next. Its callers always have more to ask."""

    def __init__(self, state: SharedState, ingress: dict[str, str], dice: random.Random) -> None:
        """ingress: what its tenants are called in the store, by name."""
        self.state = state
        self.room = WaitingRoom()
        self.served: dict[str, float] = dict.fromkeys(TENANTS, 0.0)
        self._known: dict[str, float] = dict.fromkeys(TENANTS, 0.0)
        self._names = ingress
        self._dice = dice

    def arrive(self, name: str) -> None:
        policy: TenantPolicy = TENANTS[name]
        self.room.push(Ticket(Ask(10, 10), policy, 0.0, math.inf, math.inf))

    def serve_next(self) -> None:
        ticket = self.room.pop()
        assert ticket is not None
        tenant, cost = ticket.policy, self._dice.uniform(1, 10)
        self.served[tenant.name] += cost
        self.room.charge(tenant.name, tenant.weight, cost)
        self.state.serve(self._names[tenant.name], cost / tenant.weight)
        self._known[tenant.name] += cost / tenant.weight
        self.arrive(tenant.name)

    async def synchronise(self) -> None:
        await self.state.synchronise()
        for name, shared_name in self._names.items():
            served = self.state.served(shared_name)
            self.room.charge(name, 1.0, served - self._known[name])
            self._known[name] = served


async def drive(open_one: OpenStore, new_id: Ids, sharing: bool) -> float:
    """heavy's service over light's. heavy asks at the first controller alone, light at both."""
    dice, names = random.Random(3), {name: new_id() for name in TENANTS}
    first, second = (Door(shared(open_one(), new_id), names, dice) for _ in range(2))
    for name in ("heavy", "light"):
        for _ in range(20):
            first.arrive(name)
    for _ in range(20):
        second.arrive("light")
    for turn in itertools.count():
        (second if turn % 8 == 7 else first).serve_next()
        if sharing and turn % 40 == 39:
            for door in (first, second, first):
                await door.synchronise()
        if turn == 4000:
            break
    return (first.served["heavy"] + second.served["heavy"]) / (first.served["light"] + second.served["light"])


async def test_two_controllers_keep_four_to_one_though_one_sees_only_the_light_tenant(
    open_one: OpenStore, new_id: Ids
) -> None:
    assert await drive(open_one, new_id, sharing=True) == pytest.approx(4.0, rel=0.05)


async def test_without_shared_counters_they_would_not(open_one: OpenStore, new_id: Ids) -> None:
    assert await drive(open_one, new_id, sharing=False) < 3.0
