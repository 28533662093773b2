"""Who is next."""

import math
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desk.waiting import Ticket, WaitingRoom
from tests.controller.desk.pool import ASK, policy

SETTINGS = settings(derandomize=True, deadline=None)


def ticket(
    tenant: str = "a", due_s: float = math.inf, priority: int = 3, give_up_s: float = math.inf
) -> Ticket:
    return Ticket(ASK, policy(tenant, priority=priority), 0.0, due_s, give_up_s)


def test_within_a_tenant_the_earliest_deadline_is_next() -> None:
    room = WaitingRoom()
    for due_s in (3.0, 1.0, 2.0):
        room.push(ticket(due_s=due_s))
    assert [popped.due_s for _ in range(3) if (popped := room.pop())] == [1.0, 2.0, 3.0]
    assert room.pop() is None


def test_a_lower_priority_number_goes_before_everything_else() -> None:
    room = WaitingRoom()
    room.push(ticket("a", due_s=1.0))
    room.push(ticket("b", due_s=9.0, priority=0))
    room.push(ticket("a", due_s=8.0, priority=1))
    assert [(popped.policy.name, popped.due_s) for _ in range(3) if (popped := room.pop())] == [
        ("b", 9.0),
        ("a", 8.0),
        ("a", 1.0),
    ]


def test_tenants_are_served_in_proportion_to_their_weights() -> None:
    room, rng, served = WaitingRoom(), random.Random(3), Counter[str]()
    weights = {"light": 1.0, "heavy": 4.0}
    for name in weights:
        for _ in range(50):
            room.push(ticket(name))
    for _ in range(2000):
        popped = room.pop()
        assert popped is not None
        name, cost = popped.policy.name, rng.uniform(0.5, 1.5)
        served[name] += cost  # type: ignore[assignment]  # of any number
        room.charge(name, weights[name], cost)
        room.push(ticket(name))
    assert 3.9 <= served["heavy"] / served["light"] <= 4.1


def test_whoever_was_silent_does_not_save_up() -> None:
    room = WaitingRoom()
    for _ in range(100):
        room.push(ticket("busy"))
    for _ in range(50):
        assert room.pop() is not None
        room.charge("busy", 1.0, 1.0)
    for _ in range(50):
        room.push(ticket("silent"))
    order = []
    for _ in range(20):
        popped = room.pop()
        assert popped is not None
        order.append(popped.policy.name)
        room.charge(popped.policy.name, 1.0, 1.0)
    assert 9 <= order.count("silent") <= 11


def test_what_was_not_used_is_given_back() -> None:
    room = WaitingRoom()
    room.charge("a", 1.0, 10.0)
    room.charge("b", 1.0, 5.0)
    room.charge("a", 1.0, -8.0)
    for name in ("b", "a"):
        room.push(ticket(name))
    popped = room.pop()
    assert popped is not None
    assert popped.policy.name == "a"


def test_those_whose_time_is_over_are_taken_out() -> None:
    room = WaitingRoom()
    late, later = ticket(give_up_s=1.0), ticket("b", give_up_s=2.0)
    room.push(late)
    room.push(later)
    assert room.next_expiry_s() == 1.0
    assert room.expire(0.9) == []
    assert room.expire(1.0) == [late]
    assert room.pop() is later
    assert room.next_expiry_s() is None


@SETTINGS
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "pop", "remove", "expire", "charge"]),
            st.sampled_from("abc"),
            st.integers(0, 7),
            st.integers(0, 50),
        ),
        max_size=120,
    )
)
def test_each_ticket_leaves_exactly_once_and_by_the_rules(actions: list[tuple[str, str, int, int]]) -> None:
    room, waiting, now_s = WaitingRoom(), list[Ticket](), 0.0
    for action, tenant, priority, number in actions:
        if action == "push":
            waiting.append(ticket(tenant, float(number), priority, now_s + number / 10))
            room.push(waiting[-1])
        elif action == "pop":
            popped = room.pop()
            assert (popped is None) == (not waiting)
            if popped is not None:
                assert popped.policy.priority == min(t.policy.priority for t in waiting)
                same = [t for t in waiting if t.policy == popped.policy]
                assert popped.due_s == min(t.due_s for t in same)
                waiting.remove(popped)
        elif action == "remove" and waiting:
            room.remove(waiting.pop(number % len(waiting)))
        elif action == "expire":
            now_s += number / 20
            expired = room.expire(now_s)
            assert {id(t) for t in expired} == {id(t) for t in waiting if t.give_up_s <= now_s}
            waiting = [t for t in waiting if t.give_up_s > now_s]
        else:
            room.charge(tenant, 1.0 + priority, number - 10.0)
        assert len(room) == len(waiting)
        assert room.size(tenant) == sum(t.policy.name == tenant for t in waiting)
