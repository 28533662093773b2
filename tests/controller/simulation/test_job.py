"""A simulated request's reasoning ends where the worker's own budget machine ends it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from controller.simulation.job import Grant, Job, Nature
from controller.simulation.trace import ReasoningEnd
from worker.engine import generation
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.closing import Closing
from worker.engine.generation import Limits, Phase

BYTES = [bytes([value]) for value in range(256)]
CLOSING = Closing(lambda text: tuple(text.encode()), BYTES)
FORMAT = TextFormat(BYTES, frozenset(), CLOSING)
NEVER = 10_000


def machine_used(budget: int, grace: int, until: int | None, boundary: int) -> tuple[int, ReasoningEnd]:
    """Reasoning tokens that the worker's machine lets pass. A step takes a second; the sentence that stands
    where the first limit strikes has `boundary` tokens left.
    """
    limits = Limits(
        budget, grace, budget + grace + CLOSING.longest + 1, 1, math.inf if until is None else float(until)
    )
    machine = BudgetMachine(limits, FORMAT, loop_rule=None)
    struck = budget if until is None else min(budget, until)
    token = 0
    while machine.phase is Phase.REASONING:
        token += 1
        machine.observe(ord("\n" if token == struck + boundary else "x"), float(token))
    assert machine.reasoning_end is not None
    ends = {
        generation.ReasoningEnd.BUDGET: ReasoningEnd.BUDGET,
        generation.ReasoningEnd.DEADLINE: ReasoningEnd.DEADLINE,
    }
    return machine.reasoning_tokens, ends[machine.reasoning_end]


def job_used(
    budget: int, grace: int, until: int | None, boundary: int, wants: int = NEVER
) -> tuple[int, ReasoningEnd]:
    grant = Grant(budget, grace, 1, math.inf, 0, math.inf)
    job = Job(Nature(1, wants, 1, boundary), grant, CLOSING.longest)
    job.begin(1, 0)
    for step in range(1, NEVER):
        if step == until:
            job.strike(step)
        if step == job.due:
            job.close(step, CLOSING.longest)
            break
    return job.tokens(job.due - 1), job.end


@given(
    budget=st.integers(1, 40),
    grace=st.integers(0, 12),
    until=st.none() | st.integers(1, 60),
    boundary=st.integers(0, 15),
)
def test_a_job_is_cut_where_the_workers_machine_cuts(
    budget: int, grace: int, until: int | None, boundary: int
) -> None:
    assert job_used(budget, grace, until, boundary) == machine_used(budget, grace, until, boundary)


@given(st.integers(1, 40), st.integers(0, 12), st.integers(1, 60), st.integers(0, 15), st.integers(1, 60))
def test_reasoning_never_exceeds_what_it_wants_nor_budget_and_grace(
    budget: int, grace: int, until: int, boundary: int, wants: int
) -> None:
    used, end = job_used(budget, grace, until, boundary, wants)
    assert used <= min(wants, budget + grace)
    assert (end is ReasoningEnd.NATURAL) == (used == wants)


def reasoning_job(budget: int, grace: int = 0) -> Job:
    job = Job(Nature(1, NEVER, 4, 0), Grant(budget, grace, 8, 50.0, 0, math.inf), 5)
    job.begin(1, 0)
    return job


def test_a_budget_is_not_cut_below_what_was_used_nor_raised_beyond_what_was_reserved() -> None:
    job = reasoning_job(100)
    job.adjust(3, None, step=20)
    assert job.due == 21
    job.adjust(500, None, step=20)
    assert job.due == 100


def test_more_time_takes_a_strike_back() -> None:
    job = reasoning_job(100, grace=10)
    job.nature = Nature(1, NEVER, 4, 10)
    job.strike(20)
    assert job.due == 30
    job.adjust(None, 90.0, step=22)
    assert not job.struck
    assert job.due == 110


def test_a_preempted_job_goes_on_where_it_was() -> None:
    job = reasoning_job(100)
    job.preempt(40, 0)
    assert job.pending == 1 + 40
    job.begin(1000, 0)
    assert job.tokens(1000) == 41
    assert job.due == 1000 + 59
