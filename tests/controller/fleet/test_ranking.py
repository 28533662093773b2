"""The choice among workers."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fleet.choice import TIE, Candidate, pick
from controller.fleet.outlook import Outlook, Size
from controller.fleet.roster import USUAL, Ranking, Roster
from controller.fleet.worker import LEAST_TRUST, SLOW_START_S, Worker
from controller.planning.decision import Ask, Prefix
from controller.planning.needs import Ability, Needs
from curfew.v1 import worker_pb2
from tests.controller.fleet.test_worker import description

ACTIONS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["send", "report", "lose", "describe"]), st.integers(0, 6)),
    max_size=200,
)
ASK = Ask(prompt_tokens=100, most_prompt_tokens=200)
SYSTEM = Prefix(digest=7 << 60)


def fleet(count: int) -> list[Worker]:
    """Workers that have described themselves, all in full use."""
    workers = [Worker(f"w:{number}") for number in range(count)]
    for worker in workers:
        worker.healthy = True
        worker.take_description(description(), now_s=0.0)
        worker.take_load(worker_pb2.WorkerLoad(free_slots=4), now_s=SLOW_START_S)
    return workers


def outlook(worker: Worker) -> Outlook:
    return worker.outlook(worker.load)


def act(worker: Worker, action: str, number: int) -> None:
    if action == "send":
        worker.note_sent(prompt_tokens=number)
    elif action == "report":
        worker.take_load(worker_pb2.WorkerLoad(running=number, free_slots=max(0, 4 - number)), now_s=0.0)
    elif action == "lose":
        worker.lose()
    else:
        worker.take_description(description(step_s=0.001 * (number + 1)), now_s=0.0)


@settings(derandomize=True, deadline=None)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_the_best_worker_has_a_free_slot_if_any_has_and_ends_first_among_those(
    actions: list[tuple[int, str, int]], lots: Random
) -> None:
    workers = [Worker(f"w:{number}") for number in range(5)]
    for worker in workers:
        worker.healthy = True
    roster = Roster(workers, lot=lots.random)
    for index, action, number in actions:
        if action in ("send", "report") and not workers[index].available:
            continue
        act(workers[index], action, number)
        roster.changed(workers[index])
        available = [worker for worker in workers if worker.available]
        best, chosen = roster.best(), roster.choose(ASK)
        if best is None or chosen is None:
            assert best is chosen is None
            assert not available
            continue
        assert {best, chosen} <= set(available)
        some_free = any(not outlook(worker).full for worker in available)
        assert outlook(best).full is outlook(chosen).full is not some_free
        like = [worker for worker in available if outlook(worker).full == outlook(best).full]
        soonest_s = min(outlook(worker).finish_s(USUAL) for worker in like)
        assert outlook(best).finish_s(USUAL) <= soonest_s * (1 + TIE) * (1 + 1e-9)


def sent(roster: Roster, workers: list[Worker], requests: int) -> list[int]:
    """How many requests each worker gets."""
    for _ in range(requests):
        chosen = roster.choose(ASK)
        assert chosen is not None
        roster.send(chosen, prompt_tokens=10)
    return [worker.own_requests for worker in workers]


def test_equal_workers_take_turns() -> None:
    workers = fleet(8)
    assert sent(Roster(workers), workers, 16) == [2] * 8


def test_equal_workers_get_about_as_many_requests_where_lots_are_drawn() -> None:
    workers = fleet(8)
    assert max(sent(Roster(workers, lot=Random(1).random), workers, 16)) <= 4


def test_controllers_with_the_same_news_do_not_all_run_to_one_worker() -> None:
    first = []
    for seed in range(40):
        chosen = Roster(fleet(8), lot=Random(seed).random).choose(ASK)
        assert chosen is not None
        first.append(chosen.address)
    assert max(first.count(address) for address in set(first)) <= 15


def test_the_heap_does_not_grow_with_updates() -> None:
    ranking = Ranking()
    (worker,) = fleet(1)
    for number in range(10_000):
        ranking.update(worker, float(number % 7))
    assert len(ranking._heap) < 200


def test_a_worker_that_has_just_come_is_filled_slowly() -> None:
    roster = Roster(old := fleet(2))
    new = Worker("new:1")
    new.healthy = True
    new.take_description(description(), now_s=100.0)
    roster.changed(new)
    assert new.trust == LEAST_TRUST
    taken = []
    for _ in range(3):
        worker = roster.choose(ASK)
        assert worker is not None
        taken.append(worker)
        roster.send(worker, prompt_tokens=10)
    assert new not in taken
    for each in old:
        each.take_load(worker_pb2.WorkerLoad(running=4), now_s=100.0)
        roster.changed(each)
    assert roster.choose(ASK) is new, "it is used where the others are full"
    new.take_load(worker_pb2.WorkerLoad(free_slots=4), now_s=100.0 + SLOW_START_S)
    assert new.trust == 1.0


def test_a_worker_that_cannot_do_what_is_needed_is_not_chosen() -> None:
    tools = Needs(frozenset({Ability.TOOLS}))
    workers = fleet(3)
    able = description()
    able.capabilities.tools = True
    workers[2].take_description(able, now_s=SLOW_START_S)
    workers[2].take_load(worker_pb2.WorkerLoad(running=3, free_slots=1), now_s=SLOW_START_S)
    roster = Roster(workers)
    asking = Ask(prompt_tokens=10, most_prompt_tokens=10, needs=tools)
    assert roster.best() is not workers[2]
    assert roster.choose(asking) is roster.best(tools) is workers[2]
    workers[2].lose()
    roster.changed(workers[2])
    assert roster.choose(asking) is roster.best(tools) is None
    assert roster.anyone(tools)
    assert not roster.anyone(tools.resumed("another model"))


def test_requests_with_the_same_system_turn_go_to_the_same_of_equal_workers() -> None:
    homes = set()
    for seed in range(10):
        chosen = Roster(fleet(8), lot=Random(seed).random).choose(Ask(100, 100, prefix=SYSTEM))
        assert chosen is not None
        homes.add(chosen.address)
    assert len(homes) == 1
    roster = Roster(workers := fleet(8), lot=Random(1).random)
    (home,) = [worker for worker in workers if worker.address in homes]
    roster.send(home, prompt_tokens=100)
    assert roster.choose(Ask(100, 100, prefix=SYSTEM)) is not home, "it is busier than the others"


def test_a_worker_that_has_the_system_turn_is_chosen_where_that_saves_time() -> None:
    roster = Roster(workers := fleet(8), lot=Random(1).random)
    long = Ask(prompt_tokens=20_000, most_prompt_tokens=20_000, prefix=Prefix(digest=1))
    assert long.prefix is not None
    holder = workers[5]
    roster.learn_prefix(long.prefix, holder, cached_tokens=19_000)
    roster.send(holder, prompt_tokens=10)
    assert roster.choose(long) is holder
    roster.learn_prefix(long.prefix, holder, cached_tokens=0)
    assert roster.choose(long) is not holder


def candidate(name: str, requests: int, finish_s: float, *, affine: bool = False) -> Candidate:
    return Candidate(Worker(name), requests, finish_s, affine)


CANDIDATES = st.lists(
    st.builds(candidate, st.just("w:1"), st.integers(0, 5), st.floats(0.01, 10.0), affine=st.booleans()),
    min_size=1,
    max_size=6,
)


@settings(derandomize=True, deadline=None)
@given(CANDIDATES)
def test_the_one_picked_is_as_good_as_the_best_and_no_busier_than_its_equals(
    candidates: list[Candidate],
) -> None:
    (picked,) = [each for each in candidates if each.worker is pick(candidates)]
    soonest_s = min(each.finish_s for each in candidates)
    assert picked.finish_s <= soonest_s * (1 + TIE)
    equals = [each for each in candidates if each.finish_s <= soonest_s * (1 + TIE)]
    assert picked.requests == min(each.requests for each in equals)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.001, 0.01)), min_size=2, max_size=2))
def test_without_a_system_turn_the_choice_is_the_one_that_is_picked_of_the_best_two(
    pair: list[tuple[int, float]],
) -> None:
    workers = fleet(2)
    for worker, (running, step_s) in zip(workers, pair, strict=True):
        worker.take_description(description(step_s=step_s), now_s=SLOW_START_S)
        load = worker_pb2.WorkerLoad(running=running, free_slots=4 - running)
        worker.take_load(load, now_s=2 * SLOW_START_S)
    roster = Roster(workers)
    size = Size(ASK.prompt_tokens, USUAL.output_tokens)
    seen = [(worker, outlook(worker)) for worker in workers]
    picked = pick([Candidate(each, view.requests, view.finish_s(size), False) for each, view in seen])
    chosen = roster.choose(ASK)
    assert chosen is not None
    if outlook(workers[0]) != outlook(workers[1]):
        assert chosen is picked


def test_a_predicted_finish_counts_the_wait_the_prompt_and_every_step() -> None:
    seen = Outlook(False, 0, wait_s=0.5, prefill_s_per_token=0.001, step_s=0.01, caution=1.0)
    size = Size(prompt_tokens=200, output_tokens=99)
    assert math.isclose(seen.finish_s(size), 0.5 + 0.2 + 1.0)
    assert math.isclose(seen.finish_s(size, cached_tokens=150), 0.5 + 0.05 + 1.0)
    assert math.isclose(seen._replace(caution=2.0).finish_s(size), 2 * 1.7)
