"""Who is admitted, who is preempted, and what a step holds."""

from __future__ import annotations

import pytest

from tests.worker.engine.small import (
    CHUNK,
    Outcomes,
    RecordingRunner,
    alone,
    computed,
    make_engine,
    make_request,
    recorded_engine,
    run,
    small_model,
)
from worker.engine.engine import Engine
from worker.engine.events import Started
from worker.engine.sequence import Request

MODEL = small_model()
PROMPT = [30, 33, 39, 3, 16, 32, 34, 20, 13, 5, 36, 34]


def lasting(name: str, **values: object) -> Request:
    """A request that runs for 10 steps and more."""
    return make_request(MODEL, name, prompt=PROMPT, reasoning=30, **values)  # type: ignore[arg-type]


def started_together(engine: Engine, *requests: Request) -> set[str]:
    """Which of these start in the next step."""
    for request in requests:
        engine.submit(request)
    started = {event.request_id for event in computed(engine) if isinstance(event, Started)}
    engine.check_integrity()
    return started


# Order of admission.


def test_lower_priority_numbers_start_first_then_earlier_deadlines_then_earlier_arrivals() -> None:
    requests = [
        lasting("late class", priority=1, deadline_s=101.0, received_s=100.0),
        lasting("no deadline", received_s=100.0),
        lasting("later arrival", deadline_s=110.0, received_s=102.0),
        lasting("earlier arrival", deadline_s=110.0, received_s=101.0),
        lasting("earlier deadline", deadline_s=105.0, received_s=103.0),
    ]
    engine = make_engine(MODEL, slots=1)
    outcomes = run(engine, *requests)
    order = ["earlier deadline", "earlier arrival", "later arrival", "no deadline", "late class"]
    assert list(outcomes.started) == order


def test_the_first_that_does_not_fit_holds_up_those_behind_it() -> None:
    engine = make_engine(MODEL, slots=3)
    assert started_together(engine, lasting("running")) == {"running"}
    large, small = lasting("large", samples=3), lasting("small", received_s=101.0)
    assert started_together(engine, small, large) == set()
    assert started_together(engine, lasting("more urgent", deadline_s=1e9)) == {"more urgent"}


def test_admission_reserves_all_that_a_request_may_ever_need() -> None:
    """So that what runs is not preempted for want of pages."""
    # 12 + 30 + 2 + 9 + 6 tokens: 8 pages each.
    engine = make_engine(MODEL, pages=23, page_tokens=8)
    assert started_together(engine, lasting("0"), lasting("1"), lasting("2")) == {"0", "1"}
    assert engine.load().free_pages == 23 - 16
    assert started_together(engine) == set()
    engine.cancel("0")
    assert started_together(engine) == {"2"}


def test_the_samples_of_a_request_start_together_or_not_at_all() -> None:
    engine = make_engine(MODEL, slots=4)
    assert started_together(engine, lasting("two", samples=2), lasting("three", samples=3)) == {"two"}
    assert engine.load().running == 2
    assert engine.load().waiting == 1


# Preemption.


def test_a_more_important_class_preempts_the_least_urgent_of_the_lower_ones() -> None:
    engine, outcomes = make_engine(MODEL, slots=3), Outcomes()
    running = [
        lasting("urgent", priority=1, deadline_s=110.0),
        lasting("relaxed", priority=1, deadline_s=120.0),
        lasting("background", priority=2, deadline_s=105.0),
    ]
    for request in running:
        engine.submit(request)
    for _ in range(6):
        outcomes.take(engine.step())
    important = [make_request(MODEL, f"important {n}", prompt=PROMPT, reasoning=4) for n in range(2)]
    run(engine, *important, outcomes=outcomes)
    assert [outcomes[request.request_id].end.preemptions for request in running] == [0, 1, 1]
    for request in (*running, *important):
        assert outcomes[request.request_id].whole == alone(MODEL, request)[0].whole


def test_no_class_preempts_itself() -> None:
    engine = make_engine(MODEL, slots=1)
    assert started_together(engine, lasting("running", deadline_s=200.0)) == {"running"}
    assert started_together(engine, lasting("sooner", deadline_s=101.0)) == set()


def test_nobody_is_preempted_in_vain() -> None:
    engine = make_engine(MODEL, slots=3)
    running = [lasting("high"), lasting("low 1", priority=1), lasting("low 2", priority=1)]
    assert len(started_together(engine, *running)) == 3
    assert started_together(engine, lasting("three", samples=3)) == set()
    assert engine.load().running == 3, "its third slot would not be had"


def test_pages_that_are_shared_do_not_count_twice_as_room() -> None:
    """Samples of one request, preempted together, give back their common pages once."""
    engine = make_engine(MODEL, pages=20, page_tokens=4, slots=8)
    low = make_request(
        MODEL, "low", prompt=PROMPT * 2, reasoning=0, answer=8, priority=1, samples=3, received_s=99.0
    )
    # 24 prompt tokens fill 6 pages; each sample has 2 of its own.
    assert started_together(engine, low) == {"low"}
    assert engine.load().free_pages == 20 - 12
    high = make_request(MODEL, "high", prompt=PROMPT * 5, reasoning=0, answer=20)
    assert started_together(engine, high) == {"high"}
    assert engine.load().free_pages == 0
    assert engine.load().waiting == 3


def test_nobody_is_preempted_for_pages_that_its_other_samples_hold_too() -> None:
    engine = make_engine(MODEL, pages=20, page_tokens=4, slots=8)
    # 6 pages; then 12, of which the prompt's 6 are held three times.
    high = make_request(MODEL, "high", prompt=PROMPT, reasoning=0, answer=12)
    low = make_request(MODEL, "low", prompt=PROMPT * 2, reasoning=0, answer=8, priority=1, samples=3)
    assert started_together(engine, high, low) == {"high", "low"}
    larger = make_request(MODEL, "larger", prompt=PROMPT * 4, reasoning=0, answer=12)
    assert started_together(engine, larger) == set(), "it needs 15, and 14 could be had"
    assert engine.load().running == 4
    engine.cancel("larger")
    fitting = make_request(MODEL, "fitting", prompt=PROMPT * 4, reasoning=0, answer=8)
    assert started_together(engine, fitting) == {"fitting"}


def test_the_samples_of_a_prompt_that_is_being_computed_are_preempted_and_resumed_together() -> None:
    engine, outcomes = make_engine(MODEL, slots=3, idle_step_tokens=8), Outcomes()
    low = make_request(MODEL, "low", prompt=PROMPT * 3, priority=1, samples=3)
    engine.submit(low)
    outcomes.take(engine.step())
    run(engine, lasting("high"), outcomes=outcomes)
    expected = alone(MODEL, low)
    for sample in range(3):
        assert outcomes.samples["low"][sample].whole == expected[sample].whole
    assert outcomes["low"].end.preemptions == 1


def test_a_preempted_request_starts_once_and_keeps_its_place_in_the_queue() -> None:
    engine, outcomes = make_engine(MODEL, slots=1), Outcomes()
    engine.submit(lasting("preempted", priority=1, received_s=100.0))
    outcomes.take(engine.step())
    engine.submit(lasting("later", priority=1, received_s=101.0))
    engine.submit(lasting("high", received_s=102.0))
    run(engine, outcomes=outcomes)  # which checks that nothing starts twice
    ends = {name: outcomes[name].end.timings.total_s for name in ("preempted", "later")}
    assert list(outcomes.started) == ["preempted", "high", "later"]
    assert ends["preempted"] == 0.0  # the clock stands still, and it waited for nothing before
    assert outcomes["preempted"].end.timings.queue_s == 0.0


# Prefill.


def prompt_steps(runner: RecordingRunner, name: str) -> list[int]:
    return [step.get((name, 0), 0) for step in runner.steps]


def test_prefill_goes_to_the_most_urgent_and_the_rest_of_the_budget_to_the_next() -> None:
    engine, runner = recorded_engine(MODEL, idle_step_tokens=40)
    for name, deadline_s in (("second", 120.0), ("first", 110.0)):
        engine.submit(
            make_request(MODEL, name, prompt=[5] * 52, reasoning=0, answer=1, deadline_s=deadline_s)
        )
    run(engine)
    assert prompt_steps(runner, "first") == [40, 12, 0, 0][: len(runner.steps)]
    assert prompt_steps(runner, "second") == [0, 24, 28]


def test_pieces_end_where_a_chunk_of_the_scan_ends_or_with_the_prompt() -> None:
    engine, runner = recorded_engine(MODEL, idle_step_tokens=21)
    run(engine, make_request(MODEL, prompt=[5] * 45, reasoning=0, answer=1))
    assert prompt_steps(runner, "r") == [16, 16, 13]


@pytest.mark.parametrize("step_tokens", [1, CHUNK - 1, CHUNK])
def test_a_budget_below_a_chunk_stalls_no_prompt(step_tokens: int) -> None:
    engine, runner = recorded_engine(MODEL, step_tokens=step_tokens, idle_step_tokens=1)
    outcomes = Outcomes()
    engine.submit(lasting("decoding"))
    for _ in range(3):
        outcomes.take(engine.step())
    run(engine, make_request(MODEL, "prompt", prompt=[5] * 20, reasoning=0, answer=1), outcomes=outcomes)
    assert [count for count in prompt_steps(runner, "prompt") if count] == [8, 8, 4]


def test_more_is_prefilled_while_nothing_decodes() -> None:
    engine, runner = recorded_engine(MODEL, step_tokens=8, idle_step_tokens=32)
    outcomes = Outcomes()
    engine.submit(make_request(MODEL, "prompt", prompt=[5] * 100, reasoning=0, answer=1))
    outcomes.take(computed(engine))
    run(engine, make_request(MODEL, "short", prompt=[6], priority=-1), outcomes=outcomes)
    assert prompt_steps(runner, "prompt")[:3] == [32, 24, 8]


# Slots.


@pytest.mark.parametrize(("prompts", "tokens"), [(1, 8), (2, 16), (3, 24), (6, 32)])
def test_more_is_prefilled_beside_few_decodes_while_many_prompts_wait_but_never_more_than_without(
    prompts: int, tokens: int
) -> None:
    engine, runner = recorded_engine(MODEL, step_tokens=8, idle_step_tokens=32)
    engine.submit(lasting("decoding"))
    computed(engine)
    for number in range(prompts):
        engine.submit(make_request(MODEL, f"{number}", prompt=PROMPT * 8, received_s=101.0 + number))
    computed(engine)
    assert sum(runner.steps[-1].values()) - 1 == tokens


@pytest.mark.parametrize(("long_first", "tokens"), [(False, 6 * 7), (True, 8)])
def test_short_prompts_that_come_first_are_prefilled_together_however_many_decode(
    long_first: bool, tokens: int
) -> None:
    engine, runner = recorded_engine(MODEL, slots=16, pages=200, step_tokens=8, idle_step_tokens=48)
    for number in range(7):
        engine.submit(lasting(f"decoding {number}"))
    computed(engine)
    while engine.load().backlog_tokens:
        computed(engine)
    engine.submit(make_request(MODEL, "long", prompt=PROMPT * 8, received_s=101.0 if long_first else 201.0))
    for number in range(6):
        engine.submit(make_request(MODEL, f"{number}", prompt=PROMPT[:7], received_s=102.0 + number))
    computed(engine)
    assert sum(runner.steps[-1].values()) - 7 == tokens


def test_decodes_are_computed_in_the_order_of_their_slots_and_slots_are_filled_from_the_lowest() -> None:
    """So that their states mostly lie side by side."""
    engine, runner = recorded_engine(MODEL, slots=4)
    outcomes = Outcomes()
    for name in "abcd":
        engine.submit(lasting(name))
    for _ in range(2):
        outcomes.take(computed(engine))
    assert runner.slots == {(name, 0): slot for slot, name in enumerate("abcd")}
    engine.cancel("b")
    engine.submit(lasting("e"))
    for _ in range(2):
        outcomes.take(computed(engine))
    assert list(runner.slots.items()) == [(("a", 0), 0), (("e", 0), 1), (("c", 0), 2), (("d", 0), 3)]
