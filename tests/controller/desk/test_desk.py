"""Who runs now, who waits, who is refused."""

import math
from dataclasses import replace

import pytest

from controller.desk import Desk, Flight, Tenants, Ticket
from controller.desk.desk import LONGEST_WAIT_S, NoWorkerError, spread_evenly
from controller.desk.peers import Alone
from controller.fleet import Roster
from controller.planning.decision import Ask, Decision, Mode, Prefix, Refusal, RefusedFor
from controller.planning.options import Increment
from controller.policy import Brownout, Otherwise
from tests.controller.desk.pool import ASK, SLOTS, Pool, done, policy, worker

URGENT = (Increment(math.inf, 0.1),)
AHEAD = 1
"""Requests that wait at a worker of 4 slots."""


def fill(pool: Pool, now_s: float = 0.0) -> list[Flight]:
    """Takes every place."""
    return [pool.fly(policy("filler"), now_s) for _ in range(SLOTS + AHEAD)]


def test_a_request_runs_at_once_where_there_is_a_place() -> None:
    pool = Pool()
    flight = pool.fly(policy(), 0.0)
    assert flight.decision.mode is Mode.THINK
    assert flight.placement.worker.load.running == 1
    assert pool.desk.waiting == 0


def test_without_a_worker_there_is_nothing_to_decide() -> None:
    desk = Desk(Roster(), Tenants(), spread_evenly())
    with pytest.raises(NoWorkerError):
        desk.arrive(ASK, policy(), 0.0)
    with pytest.raises(NoWorkerError):
        desk.look(ASK, policy(), 0.0)


def test_a_full_worker_is_sent_no_more_and_the_next_goes_when_one_ends() -> None:
    pool = Pool()
    flights = fill(pool)
    ticket = pool.arrive(policy(brownout=Brownout.NONE), 0.01)
    assert isinstance(ticket, Ticket)
    assert pool.desk.decide(0.01) == []
    assert pool.desk.waiting == 1
    flights[0].end(done(), 0.1)
    (verdict,) = pool.desk.decide(0.1)
    assert verdict[0] is ticket
    assert isinstance(verdict[1], Flight)
    assert pool.desk.waiting == 0


def test_what_a_request_waited_is_part_of_what_it_is_predicted_to_take() -> None:
    pool = Pool()
    flights = fill(pool)
    ticket = pool.arrive(policy(brownout=Brownout.NONE), 0.0)
    pool.desk.decide(0.0)
    flights[0].end(done(), 1.0)
    ((_, flight),) = pool.desk.decide(1.0)
    assert isinstance(flight, Flight)
    assert flight.decision.predicted_s > 1.0
    assert isinstance(ticket, Ticket)


def test_between_tenants_the_one_that_was_served_less_is_next() -> None:
    pool = Pool()
    flights = fill(pool)
    waiting = [pool.arrive(policy(name, brownout=Brownout.NONE), 0.0) for name in ("filler", "filler", "b")]
    pool.desk.decide(0.0)
    flights[0].end(done(), 0.1)
    ((ticket, _),) = pool.desk.decide(0.1)
    assert ticket is waiting[2]


def test_a_wait_ends_when_not_even_an_answer_at_once_would_be_in_time() -> None:
    pool = Pool()
    fill(pool)
    pool.arrive(policy(deadline_s=1.0, brownout=Brownout.NONE), 0.0)
    pool.desk.decide(0.0)
    wake_s = pool.desk.wake_s()
    assert wake_s is not None
    assert 0.9 < wake_s < 1.0
    ((_, refusal),) = pool.desk.decide(wake_s)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusedFor.PROMISE
    assert refusal.retry_s is not None
    assert pool.desk.wake_s() is None
    assert pool.tenants["a"].standing.refused[RefusedFor.PROMISE] == 1


def test_who_is_served_however_late_waits_for_long() -> None:
    pool = Pool()
    fill(pool)
    pool.arrive(policy(deadline_s=0.5, otherwise=Otherwise.BEST_EFFORT, brownout=Brownout.NONE), 0.0)
    pool.desk.decide(0.0)
    assert pool.desk.wake_s() == LONGEST_WAIT_S


def test_a_caller_that_leaves_waits_no_more() -> None:
    pool = Pool()
    flights = fill(pool)
    ticket = pool.arrive(policy(), 0.0)
    assert isinstance(ticket, Ticket)
    pool.desk.leave(ticket)
    pool.desk.leave(ticket)
    assert pool.desk.waiting == 0
    flights[0].end(done(), 0.1)
    assert pool.desk.decide(0.1) == []
    assert pool.tenants["a"].standing.requests == 1


def test_what_never_fits_is_refused_for_good() -> None:
    refusal = Pool().arrive(policy(deadline_s=0.003), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_s is None


def test_what_fits_an_idle_pool_alone_is_refused_for_now() -> None:
    pool = Pool()
    fill(pool)
    worker = pool.roster.best()
    assert worker is not None
    for _ in range(40):
        worker.note_sent(prompt_tokens=400)
    refusal = pool.arrive(policy(deadline_s=0.4), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_s is not None


def overload(pool: Pool, tenant: str, rate: float, until_s: float) -> list[Ticket | Refusal]:
    """Arrivals that nobody decides upon."""
    return [pool.arrive(policy(tenant), number / rate) for number in range(int(rate * until_s))]


def test_one_alone_is_never_priced_out_however_much_it_asks_for() -> None:
    pool = Pool()
    huge = Ask(prompt_tokens=900, most_prompt_tokens=900)
    for now_s in (0.0, 1.0, 2.0):
        flight = pool.fly(policy("b", deadline_s=None), now_s, huge)
        assert flight.decision.brownout is Brownout.NONE
        flight.end(done(), now_s + 0.5)


def test_under_load_the_greedy_are_squeezed_and_the_modest_are_not() -> None:
    pool = Pool(slots=16)
    overload(pool, "greedy", rate=400.0, until_s=2.0)
    pool.arrive(policy("modest"), 2.0)
    greedy = pool.desk.look(ASK, policy("greedy"), 2.0)[1]
    modest = pool.desk.look(ASK, policy("modest"), 2.0)[1]
    assert isinstance(greedy, Refusal) or greedy.brownout is not Brownout.NONE
    assert isinstance(modest, Decision)
    assert modest.brownout is Brownout.NONE


def test_who_may_be_rejected_is_rejected_when_others_need_the_place_more() -> None:
    pool = Pool()
    fill(pool)
    outcomes = overload(pool, "b", rate=2000.0, until_s=1.0)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert refused
    assert {refusal.reason for refusal in refused} <= {RefusedFor.PRICE, RefusedFor.CROWD}
    assert all(refusal.retry_s is not None for refusal in refused)


def test_who_may_only_be_queued_waits_for_a_better_price() -> None:
    pool = Pool()
    flights = fill(pool)
    # As dear as it gets: tenants whose requests no price takes away.
    for number in range(4000):
        pool.desk.market.arrive(f"dear{number % 3}", 1.0, URGENT, SLOTS, number / 4000)
    ticket = pool.arrive(policy("patient", deadline_s=None, brownout=Brownout.QUEUE, weight=1e-9), 1.0)
    assert isinstance(ticket, Ticket)
    flights[0].end(done(), 1.0)
    assert pool.desk.decide(1.0) == []
    assert pool.desk.waiting == 1
    assert pool.desk.wake_s() == pytest.approx(1.1)
    # Everyone else is gone.
    ((served, flight),) = pool.desk.decide(60.0)
    assert served is ticket
    assert isinstance(flight, Flight)


def test_no_tenant_may_fill_the_waiting_room() -> None:
    pool = Pool()
    fill(pool)
    outcomes = [pool.arrive(policy("b", deadline_s=None, brownout=Brownout.NONE), 0.0) for _ in range(3000)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert {refusal.reason for refusal in refused} == {RefusedFor.CROWD}
    assert isinstance(pool.arrive(policy("c", deadline_s=None, brownout=Brownout.NONE), 0.0), Ticket)


def test_a_look_has_no_consequences() -> None:
    pool = Pool()
    before = pool.desk.look(ASK, policy(), 0.0)[1]
    assert pool.desk.look(ASK, policy(), 0.0)[1] == before
    assert pool.desk.waiting == 0
    assert pool.tenants["a"].standing.requests == 0


def test_a_larger_model_of_many_workers_shares_the_load() -> None:
    pool = Pool(workers=3)
    flights = [pool.fly(policy(), 0.0, replace(ASK, prompt_tokens=20)) for _ in range(9)]
    by_worker = {flight.placement.worker.address for flight in flights}
    assert len(by_worker) == 3


def test_spread_numbers_cover_their_range_evenly() -> None:
    spread = spread_evenly()
    numbers = [spread() for _ in range(1000)]
    assert all(-1 <= number <= 1 for number in numbers)
    assert all(95 <= sum(low <= n < low + 0.2 for n in numbers) <= 105 for low in (-1.0, -0.4, 0.2, 0.8))


def test_an_ask_is_not_changed() -> None:
    ask = Ask(prompt_tokens=10, most_prompt_tokens=20, deadline_s=1.0)
    assert Pool().fly(policy(), 0.0, ask).placement.ask is ask


def test_a_hedge_takes_a_free_slot_at_another_worker_that_nobody_waits_for() -> None:
    pool = Pool(workers=2, slots=1)
    flight = pool.fly(policy(), now_s=0.0)
    place = pool.desk.hedge(flight)
    assert place is not None
    worker, sent = place
    assert worker is not flight.worker
    assert pool.desk.hedge(flight) is None, "no slot is left"
    sent.end()
    assert pool.desk.hedge(flight) is not None


def test_a_hedges_time_is_charged() -> None:
    peers = Alone()
    desk = Desk(Roster([worker("w:1"), worker("w:2")]), Tenants(), lambda: 0.0, peers)
    ticket = desk.arrive(ASK, policy(weight=2.0), 0.0)
    assert isinstance(ticket, Ticket)
    (flight,) = [verdict for _, verdict in desk.decide(0.0)]
    assert isinstance(flight, Flight)
    before = peers.served("a")
    desk.charge_hedge(flight, 0.5)
    assert peers.served("a") == pytest.approx(before + 0.25)


def test_there_is_no_hedge_without_another_worker() -> None:
    pool = Pool(workers=1)
    assert pool.desk.hedge(pool.fly(policy(), now_s=0.0)) is None


def test_requests_with_a_system_turn_go_where_a_completion_told_that_it_is_at_hand() -> None:
    pool = Pool(workers=4)
    ask = replace(ASK, prompt_tokens=900, most_prompt_tokens=900, prefix=Prefix(digest=1))
    home = pool.roster.choose(ask)
    assert home is not None
    busy = pool.roster.send(home, prompt_tokens=1)
    first = pool.fly(policy(), 0.0, ask)
    assert first.worker is not home
    first.start(900)
    first.end(replace(done(), prompt_tokens=900, cached_prompt_tokens=880), 0.2)
    busy.end()
    assert pool.fly(policy(), 0.3, ask).worker is first.worker
