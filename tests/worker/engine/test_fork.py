"""Answer probes: a copy of a reasoning request answers now, and the request does not notice."""

from __future__ import annotations

from random import Random

import pytest

from tests.worker.engine.small import (
    Clock,
    Outcomes,
    alone,
    make_engine,
    make_request,
    random_sampling,
    recorded_engine,
    run,
    small_model,
)
from worker.engine.engine import DuplicateError, Engine, TooLargeError
from worker.engine.generation import Phase, ReasoningEnd, TokenRun
from worker.engine.sampling import Sampling

MODEL = small_model()
PROMPT = [30, 33, 39, 3, 16, 32, 34, 20, 13, 5, 36, 34]
GREEDY = Sampling()


def reasoning_engine(tokens: int, **sizes: int) -> tuple[Engine, Outcomes]:
    """An engine in which `r` has used so many reasoning tokens of 40."""
    engine, outcomes = make_engine(MODEL, Clock(), **sizes), Outcomes()
    engine.submit(make_request(MODEL, prompt=PROMPT, reasoning=40))
    while outcomes.output_tokens("r") < tokens:
        outcomes.take(engine.step())
    return engine, outcomes


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 11, 12, 30])
def test_a_probe_answers_what_a_request_stopped_there_answers(tokens: int) -> None:
    engine, outcomes = reasoning_engine(tokens)
    sampling = random_sampling(Random(tokens))
    so_far = outcomes["r"].ids
    assert engine.fork("r", "probe", 5, sampling)
    run(engine, outcomes=outcomes)
    stopped = make_request(
        MODEL,
        prompt=PROMPT,
        reasoning=tokens,
        grace=0,
        answer=5,
        sampling=sampling,
        resume=(TokenRun(Phase.REASONING, so_far),),
    )
    expected, probe = alone(MODEL, stopped)[0], outcomes["probe"]
    assert probe.tokens == expected.tokens
    assert probe.answer == expected.answer != ""
    assert probe.reasoning == ""
    assert probe.end.reasoning_end is ReasoningEnd.BUDGET
    assert probe.end.reasoning_tokens == tokens
    assert outcomes["r"].whole == alone(MODEL, make_request(MODEL, prompt=PROMPT, reasoning=40))[0].whole


def test_a_probe_is_closed_and_sampled_in_the_next_step_of_the_batch() -> None:
    engine, runner = recorded_engine(MODEL)
    outcomes = Outcomes()
    engine.submit(make_request(MODEL, prompt=PROMPT, reasoning=40))
    while outcomes.output_tokens("r") < 6:
        outcomes.take(engine.step())
    assert engine.fork("r", "probe", 5, GREEDY)
    runner.steps.clear()
    outcomes.take(engine.step())
    closing = [phase for phase, _ in outcomes["probe"].tokens].count(Phase.FORCED)
    assert closing > 0
    # The token that the original fed next is fed again, and the close behind it: no second prefill.
    assert runner.steps == [{("r", 0): 1, ("probe", 0): 1 + closing}]
    assert outcomes["probe"].tokens[-1][0] is Phase.ANSWER


def test_a_probe_holds_one_slot_and_only_the_pages_that_it_writes() -> None:
    engine, outcomes = reasoning_engine(24, page_tokens=8, pages=100)
    before = engine.load()
    assert engine.fork("r", "probe", 5, GREEDY)
    after = engine.load()
    assert after.free_slots == before.free_slots - 1
    # 35 tokens are computed: 4 full pages are shared; 36 + a close of up to 9 + 5 tokens fit 7 pages.
    assert before.free_pages - after.free_pages == 7 - 4
    engine.check_integrity()
    run(engine, outcomes=outcomes)
    assert engine.load().free_pages == 100


def test_a_probe_outlives_its_request() -> None:
    engine, outcomes = reasoning_engine(9)
    assert engine.fork("r", "probe", 5, GREEDY)
    engine.cancel("r")
    run(engine, outcomes=outcomes)
    assert outcomes["probe"].answer != ""


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_cancelled_probe_brings_no_more_events_and_frees_all(steps: int) -> None:
    engine, outcomes = reasoning_engine(9)
    before = engine.load()
    assert engine.fork("r", "probe", 5, GREEDY)
    for _ in range(steps):
        outcomes.take(engine.step())
    engine.cancel("probe")
    after = engine.load()
    assert (after.free_slots, after.free_pages) == (before.free_slots, before.free_pages)
    events = engine.step()
    assert {event.request_id for event in events} == {"r"}


@pytest.mark.parametrize("sizes", [{"slots": 1}, {"slots": 2, "pages": 10}])
def test_a_probe_that_finds_no_room_is_not_made(sizes: dict[str, int]) -> None:
    engine, outcomes = reasoning_engine(5, **sizes)
    before = engine.load()
    assert not engine.fork("r", "probe", 5, GREEDY)
    assert engine.load() == before
    run(engine, outcomes=outcomes)
    assert outcomes["r"].whole == alone(MODEL, make_request(MODEL, prompt=PROMPT, reasoning=40))[0].whole


def test_only_a_request_that_reasons_is_probed() -> None:
    engine, outcomes = make_engine(MODEL, step_tokens=8, idle_step_tokens=8), Outcomes()
    assert not engine.fork("never", "probe", 5, GREEDY)
    engine.submit(make_request(MODEL, prompt=PROMPT, reasoning=2, grace=0, answer=5))
    assert not engine.fork("r", "probe", 5, GREEDY), "it waits"
    outcomes.take(engine.step())
    assert not engine.fork("r", "probe", 5, GREEDY), "its prompt is not computed"
    while not outcomes["r"].answer:
        outcomes.take(engine.step())
    assert not engine.fork("r", "probe", 5, GREEDY), "it answers"
    run(engine, outcomes=outcomes)
    assert not engine.fork("r", "probe", 5, GREEDY), "it is over"


def test_an_id_in_use_and_a_probe_that_is_too_long_are_refused() -> None:
    engine, _ = reasoning_engine(5, max_sequence_tokens=100)
    with pytest.raises(DuplicateError, match="'r'"):
        engine.fork("r", "r", 5, GREEDY)
    with pytest.raises(TooLargeError, match="exceed the 100"):
        engine.fork("r", "probe", 100, GREEDY)
    engine.check_integrity()


def test_a_probe_that_is_preempted_goes_on() -> None:
    engine, outcomes = reasoning_engine(9, slots=3)
    assert engine.fork("r", "probe", 6, GREEDY)
    outcomes.take(engine.step())
    run(engine, make_request(MODEL, "urgent", priority=-1, samples=3), outcomes=outcomes)
    assert outcomes["probe"].end.preemptions == 1
    undisturbed, expected = reasoning_engine(9)
    assert undisturbed.fork("r", "probe", 6, GREEDY)
    run(undisturbed, outcomes=expected)
    assert outcomes["probe"].whole == expected["probe"].whole
    assert outcomes["r"].whole == expected["r"].whole


def test_a_probe_may_be_preempted_before_its_first_step() -> None:
    engine, outcomes = reasoning_engine(9, slots=2)
    assert engine.fork("r", "probe", 6, GREEDY)
    run(engine, make_request(MODEL, "urgent", priority=-1, samples=2), outcomes=outcomes)
    assert outcomes["probe"].end.preemptions == 1
    assert outcomes["probe"].answer != ""


def test_a_probes_times_count_from_its_fork() -> None:
    clock, outcomes = Clock(), Outcomes()
    engine = make_engine(MODEL, clock)
    engine.submit(make_request(MODEL, prompt=PROMPT, reasoning=40, received_s=clock()))
    while not engine.idle:
        if outcomes.output_tokens("r") == 9:
            assert engine.fork("r", "probe", 5, GREEDY)
        outcomes.take(engine.step())
        clock.now_s += 1.0
    timings = outcomes["probe"].end.timings
    assert outcomes.started["probe"].queue_s == timings.queue_s == timings.first_token_s == 0.0
    assert timings.total_s == timings.decode_steps - 1
