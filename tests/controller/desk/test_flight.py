"""A request from its dispatch to its settlement."""

from dataclasses import replace

import pytest

from controller.desk import Objective
from controller.policy import Brownout, Objectives
from tests.controller.desk.pool import SLOTS, Pool, done, menu, policy


def test_a_request_that_ends_frees_its_place_and_is_counted_once() -> None:
    pool = Pool()
    flight = pool.fly(policy(), 0.0)
    assert flight.placement.worker.load.running == 1
    settlement = flight.end(done(total_s=0.2), 0.25)
    flight.leave()
    assert flight.placement.worker.load.running == 0
    assert settlement.kept
    standing = pool.tenants["a"].standing
    assert (standing.requests, standing.answered, standing.kept) == (1, 1, 1)


def test_every_objective_is_settled_by_what_came() -> None:
    pool = Pool()
    promised = Objectives(
        share=0.9, deadline_s=2.0, first_token_s=0.5, first_answer_token_s=1.0, per_token_s=0.05
    )
    flight = pool.fly(replace(policy(), objectives=promised), 10.0)
    flight.start(48)
    flight.reason(1, 10.1)
    flight.answer(11.2)
    settlement = flight.end(done(reasoning_tokens=20), 11.5)
    came = {result.objective: result for result in settlement.results}
    for objective, actual_s, kept in (
        (Objective.DEADLINE, 1.5, True),
        (Objective.FIRST_TOKEN, 0.1, True),
        (Objective.FIRST_ANSWER_TOKEN, 1.2, False),
        (Objective.PER_TOKEN, 1.4 / 25, False),
    ):
        assert came[objective].actual_s == pytest.approx(actual_s)
        assert came[objective].kept == kept
    assert not settlement.kept


def test_lengths_are_learnt_from_reasoning_that_stopped_and_that_was_cut() -> None:
    pool = Pool()
    for reasoning_tokens, stopped in ((30, True), (50, False), (10, None)):
        pool.fly(policy(), 0.0).end(done(reasoning_tokens, stopped=stopped), 0.2)
    stops = pool.tenants["a"].lengths.estimate(1.0).reasoning
    assert stops.lengths == (30,)
    assert stops.stopped[0] == pytest.approx(1 / 3)


def test_one_that_fails_or_whose_caller_leaves_teaches_nothing() -> None:
    pool = Pool()
    pool.fly(policy(), 0.0).fail()
    pool.fly(policy(), 0.0).leave()
    standing = pool.tenants["a"].standing
    assert (standing.requests, standing.failed, standing.answered) == (2, 1, 0)
    worker = pool.roster.best()
    assert worker is not None
    assert worker.load.running == 0


def crowd(pool: Pool, from_s: float, to_s: float, rate: float = 500.0) -> None:
    """Makes places dear."""
    asked = menu(policy("a"))
    for number in range(int((to_s - from_s) * rate)):
        pool.desk.market.arrive("a", 1.0, asked, SLOTS, from_s + number / rate)


def test_when_places_become_dear_those_that_run_think_less() -> None:
    pool = Pool()
    flight = pool.fly(policy("a"), 0.0)
    assert flight.budget_tokens == 100
    crowd(pool, 0.0, 1.0)
    adjustment = flight.reason(1, 1.0)
    assert adjustment is not None
    assert adjustment.why.startswith("the pool has become dearer: budget ")
    flight.adjusted(adjustment)
    assert flight.budget_tokens < 100
    assert flight.adjustments == 1


def test_never_to_less_than_was_used_already() -> None:
    pool = Pool()
    flight = pool.fly(policy("a"), 0.0)
    crowd(pool, 0.0, 1.0)
    adjustment = flight.reason(60, 1.0)
    assert adjustment is not None
    assert adjustment.reasoning_tokens == 61


def test_when_places_become_cheap_again_they_think_more() -> None:
    pool = Pool()
    pool.fly(policy("other"), 0.0)
    crowd(pool, 0.0, 1.0)
    flight = pool.fly(policy("a", brownout=Brownout.LESS, deadline_s=None), 1.0)
    assert flight.budget_tokens < 100
    adjustment = flight.reason(20, 31.0)
    assert adjustment is not None
    assert adjustment.reasoning_tokens == 100


def test_a_budget_is_never_raised_above_what_was_reserved_for_it() -> None:
    pool = Pool()
    pool.fly(policy("other"), 0.0)
    crowd(pool, 0.0, 1.0)
    flight = pool.fly(policy("a", brownout=Brownout.LESS, deadline_s=None), 1.0)
    assert flight.decision.budget_tokens < flight.decision.reserve_tokens == 100
    for token in range(20, 90, 10):
        adjustment = flight.reason(token, 31.0 + token)
        if adjustment is not None:
            flight.adjusted(adjustment)
        assert flight.budget_tokens <= flight.decision.reserve_tokens


def test_one_that_may_not_be_squeezed_keeps_its_budget_whatever_the_price() -> None:
    pool = Pool()
    flight = pool.fly(policy("a", brownout=Brownout.NONE), 0.0)
    crowd(pool, 0.0, 1.0)
    assert flight.reason(1, 1.0) is None


def test_probes_are_paid_for_with_the_time_that_they_take() -> None:
    plain = done()
    probed = replace(plain, probe_tokens=10)
    step_s = (plain.total_s - plain.first_token_s) / plain.decode_steps
    assert probed.slot_s == pytest.approx(plain.slot_s + 10 * step_s)
    pool = Pool()
    pool.fly(policy(), 0.0).end(probed, 0.2)
    assert pool.tenants["a"].standing.probe_tokens == 10


def test_a_steady_price_moves_nothing() -> None:
    pool = Pool()
    flight = pool.fly(policy("a"), 0.0)
    assert all(flight.reason(token, 0.01 + 0.004 * token) is None for token in range(1, 90))
