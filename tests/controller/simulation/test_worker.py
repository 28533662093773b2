"""A simulated worker keeps the rules of the real one's scheduler, and its time adds up."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.speed import DecodeCurve, Load
from controller.simulation.job import Done, Grant, Job, Nature
from controller.simulation.speed import EngineDetails, WorkerModel
from controller.simulation.trace import ReasoningEnd
from controller.simulation.worker import QueueFullError, SimulatedWorker

STEP_S = 0.01
STEADY = WorkerModel(
    name="steady",
    source="a test",
    decode=DecodeCurve.through([(1, STEP_S)]),
    prefill_tokens_per_s=10_000.0,
    slots=2,
    max_sequence_tokens=10_000,
    page_tokens=10,
    pages=10_000,
    queue=100,
    engine=EngineDetails(
        step_tokens=100, idle_step_tokens=400, chunk_tokens=10, closing_tokens=0, step_ratios=(1.0,)
    ),
)
"""A step takes 10 ms whatever the batch; 100 prompt tokens take as long."""


@dataclass
class Bench:
    """A worker, a clock, and all that was told."""

    model: WorkerModel = STEADY
    seed: int = 0
    events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    begun: list[tuple[float, Job]] = field(default_factory=list)
    first_answers: dict[Job, float] = field(default_factory=dict)
    done: dict[Job, Done] = field(default_factory=dict)
    progress: list[tuple[float, dict[Job, int]]] = field(default_factory=list)
    loads: list[tuple[float, Load]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.now_s = 0.0
        self.worker = SimulatedWorker(self.model, self.at, self, Random(self.seed))

    def at(self, when_s: float, happen: Callable[[float], None]) -> None:
        assert when_s >= self.now_s - 1e-9
        heapq.heappush(self.events, (when_s, next(self.numbers), happen))

    def run(self, until_s: float = math.inf) -> None:
        while self.events and self.events[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self.events)
            happen(self.now_s)

    def send(
        self,
        when_s: float = 0.0,
        *,
        prompt: int = 100,
        wants: int = 50,
        answer: int = 9,
        budget: int = 0,
        grace: int = 0,
        boundary: int = 0,
        until_s: float = math.inf,
        priority: int = 0,
        deadline_s: float = math.inf,
    ) -> Job:
        grant = Grant(budget, grace, 100, until_s, priority, deadline_s)
        job = Job(Nature(prompt, wants, answer, boundary), grant, self.model.engine.closing_tokens)
        self.at(when_s, lambda now_s: self.worker.submit(job, now_s))
        return job

    # What the worker tells.

    def started(self, job: Job, load: Load, now_s: float) -> None:
        self.begun.append((now_s, job))
        self.loads.append((now_s, load))

    def reasoned(self, tokens: list[tuple[Job, int]], load: Load, now_s: float) -> None:
        self.progress.append((now_s, dict(tokens)))
        self.loads.append((now_s, load))

    def answered(self, job: Job, now_s: float) -> None:
        self.first_answers[job] = now_s

    def finished(self, job: Job, done: Done, load: Load, now_s: float) -> None:
        self.done[job] = done
        self.loads.append((now_s, load))


def test_the_time_of_a_request_is_that_of_its_prompt_and_its_steps() -> None:
    bench = Bench()
    job = bench.send(1.0, prompt=100, wants=50, answer=9, budget=100)
    bench.run()
    done = bench.done[job]
    # The first token comes with the prompt; the end of the text takes a step of its own.
    assert done.first_token_s == pytest.approx(STEP_S)
    assert done.first_answer_s == pytest.approx(51 * STEP_S)
    assert done.total_s == pytest.approx(60 * STEP_S)
    assert (done.decode_steps, done.mean_batch_size) == (60, 1.0)
    assert (done.reasoning_tokens, done.answer_tokens) == (50, 9)
    assert done.reasoning_end is ReasoningEnd.NATURAL


def test_an_answer_longer_than_its_place_is_cut_and_said_to_be() -> None:
    bench = Bench()
    whole, cut = bench.send(answer=99), bench.send(answer=101)
    bench.run()
    assert bench.done[whole].complete
    assert (bench.done[cut].answer_tokens, bench.done[cut].complete) == (100, False)


def test_reasoning_ends_with_the_first_step_after_its_time() -> None:
    bench = Bench()
    job = bench.send(wants=1000, budget=1000, until_s=0.2349)
    bench.run()
    assert bench.done[job].reasoning_end is ReasoningEnd.DEADLINE
    assert bench.done[job].reasoning_tokens == 24
    assert bench.first_answers[job] == pytest.approx(0.25)


def test_time_that_is_up_within_the_grace_of_a_budget_changes_nothing() -> None:
    bench = Bench()
    job = bench.send(wants=1000, budget=20, grace=10, boundary=10, until_s=0.25)
    bench.run()
    assert bench.done[job].reasoning_tokens == 30
    assert bench.done[job].reasoning_end is ReasoningEnd.BUDGET


def test_an_adjustment_holds_from_the_next_step() -> None:
    bench = Bench()
    job = bench.send(wants=1000, budget=1000)
    bench.at(0.205, lambda now_s: bench.worker.adjust(job, 30, None, now_s))
    bench.run()
    assert bench.done[job].reasoning_tokens == 30
    assert bench.done[job].reasoning_end is ReasoningEnd.BUDGET


def test_no_more_run_than_there_are_slots_and_the_next_takes_a_slot_in_the_next_step() -> None:
    bench = Bench()
    first, second, third = (bench.send(prompt=10, answer=9) for _ in range(3))
    bench.run()
    assert [job for _, job in bench.begun] == [first, second, third]
    assert bench.done[third].queue_s == pytest.approx(bench.done[first].total_s)
    assert max(load.running for _, load in bench.loads) == STEADY.slots


def test_the_lower_priority_number_goes_first_then_the_earlier_deadline() -> None:
    bench = Bench(replace(STEADY, slots=1))
    running = bench.send(0.0, prompt=10)
    late = bench.send(0.01, prompt=10, deadline_s=9.0)
    soon = bench.send(0.02, prompt=10, deadline_s=5.0)
    behind = bench.send(0.01, prompt=10, priority=1, deadline_s=1.0)
    bench.run()
    assert [job for _, job in bench.begun] == [running, soon, late, behind]


def test_a_more_urgent_class_takes_the_place_of_the_least_urgent_which_loses_nothing_it_said() -> None:
    bench = Bench(replace(STEADY, slots=1))
    low = bench.send(0.0, wants=50, budget=100, priority=5)
    high = bench.send(0.2, prompt=10, priority=1)
    bench.run()
    assert bench.done[high].queue_s < 2 * STEP_S
    done = bench.done[low]
    assert done.reasoning_tokens == 50
    assert done.decode_steps == 60
    # In the step of its next token its prompt and the 20 tokens before it are computed once more.
    assert done.total_s == pytest.approx((60 + 10 + 0.2) * STEP_S)


def test_the_same_class_never_takes_a_place() -> None:
    bench = Bench(replace(STEADY, slots=1))
    first = bench.send(0.0, deadline_s=9.0)
    second = bench.send(0.01, deadline_s=1.0)
    bench.run()
    assert [job for _, job in bench.begun] == [first, second]
    assert bench.done[second].queue_s > 0.08


def test_the_first_that_does_not_fit_holds_up_those_behind_it() -> None:
    bench = Bench(replace(STEADY, pages=40))
    first = bench.send(0.0, prompt=200)
    large = bench.send(0.01, prompt=200)
    small = bench.send(0.02, prompt=10)
    bench.run()
    assert [job for _, job in bench.begun] == [first, large, small]
    assert bench.done[large].queue_s == pytest.approx(bench.done[first].total_s - 0.01, abs=STEP_S)


def test_a_long_prompt_is_computed_in_pieces_and_never_holds_up_those_that_decode() -> None:
    bench = Bench()
    decoding = bench.send(0.0, prompt=10, answer=99)
    long = bench.send(0.1, prompt=1000)
    bench.run()
    # Ten pieces of a hundred tokens; each makes the step beside it twice as long.
    assert bench.done[long].first_token_s == pytest.approx(10 * 2 * STEP_S, abs=2 * STEP_S)
    assert bench.done[decoding].total_s == pytest.approx((100 + 10) * STEP_S, abs=2 * STEP_S)


def test_pieces_end_with_a_chunk() -> None:
    bench = Bench(replace(STEADY, engine=replace(STEADY.engine, step_tokens=105)))
    bench.send(0.0, prompt=10, answer=99)
    long = bench.send(0.1, prompt=210)
    bench.run()
    done = bench.done[long]
    assert done.first_token_s - done.queue_s == pytest.approx(100e-4 + 100e-4 + 10e-4 + 3 * STEP_S)


def test_a_closing_text_is_computed_beside_the_next_step() -> None:
    closing = replace(STEADY, engine=replace(STEADY.engine, closing_tokens=50))
    bench = Bench(closing)
    cut = bench.send(wants=1000, budget=20)
    bench.run()
    done = bench.done[cut]
    assert done.forced_tokens == 50
    assert done.total_s == pytest.approx((20 + 9 + 1) * STEP_S + 50 / STEADY.prefill_tokens_per_s)


def test_a_longer_past_takes_longer_to_read() -> None:
    reading = replace(STEADY, engine=replace(STEADY.engine, context_token_s=1e-5))
    bench = Bench(reading)
    job = bench.send(prompt=100, wants=16, answer=1, budget=100)
    bench.run()
    # Two tokens more than are reasoned: the answer's, and the end of the text. In how many steps the past
    # is taken to be equally long does not matter here.
    assert bench.done[job].total_s == pytest.approx(18 * STEP_S + 17 * 108e-5, rel=0.01)


def test_the_mean_batch_is_that_of_the_requests_own_steps() -> None:
    bench = Bench()
    long = bench.send(0.0, prompt=10, answer=99)
    short = bench.send(0.1, prompt=10, answer=19)
    bench.run()
    assert bench.done[short].mean_batch_size == 2.0
    assert bench.done[long].mean_batch_size == pytest.approx(1 + 20 / 100)


def test_an_idle_worker_takes_larger_pieces_at_the_rate_that_was_measured() -> None:
    bench = Bench()
    job = bench.send(0.0, prompt=1000)
    bench.run()
    assert bench.done[job].first_token_s == pytest.approx(1000 / STEADY.prefill_tokens_per_s)


def test_a_full_queue_takes_nothing_more() -> None:
    bench = Bench(replace(STEADY, slots=1, queue=1))
    bench.send(0.0)
    bench.send(0.01)
    bench.run(0.02)
    with pytest.raises(QueueFullError):
        bench.worker.submit(Job(Nature(1, 1, 1, 0), Grant(0, 0, 1, math.inf, 0, math.inf), 0), 0.03)


def test_who_is_cancelled_frees_the_place_in_the_next_step() -> None:
    bench = Bench(replace(STEADY, slots=1))
    gone = bench.send(0.0, wants=1000, budget=1000)
    waits = bench.send(0.0)
    never = bench.send(0.0)
    bench.at(0.1, lambda now_s: bench.worker.cancel(never, now_s))
    bench.at(0.2, lambda now_s: bench.worker.cancel(gone, now_s))
    bench.run()
    assert set(bench.done) == {waits}
    assert bench.done[waits].queue_s == pytest.approx(0.2, abs=STEP_S)


def test_progress_is_told_every_16_tokens_or_100_ms() -> None:
    bench = Bench()
    job = bench.send(0.0, wants=200, budget=1000)
    bench.run()
    told = [(when_s, tokens[job]) for when_s, tokens in bench.progress if job in tokens]
    assert told[0][1] == 1
    for (before_s, before), (after_s, after) in itertools.pairwise(told):
        assert after - before <= 16
        assert after_s - before_s <= 0.1 + STEP_S + 1e-9


def test_a_slower_moment_stretches_its_steps() -> None:
    slow = replace(STEADY, engine=replace(STEADY.engine, step_ratios=(2.0,)))
    bench = Bench(slow)
    job = bench.send(0.0)
    bench.run()
    assert bench.done[job].total_s == pytest.approx(2 * 10 * STEP_S)


requests = st.lists(
    st.fixed_dictionaries(
        {
            "when_s": st.integers(0, 200).map(lambda hundredths: hundredths / 100),
            "prompt": st.integers(1, 500),
            "wants": st.integers(1, 80),
            "answer": st.integers(1, 120),
            "budget": st.integers(0, 60),
            "grace": st.integers(0, 12),
            "boundary": st.integers(0, 15),
            "until_s": st.none() | st.floats(0.0, 3.0),
            "priority": st.integers(0, 2),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests, st.integers(0, 3))
def test_every_request_ends_within_its_limits_and_leaves_the_worker_as_it_was(
    wanted: list[dict[str, float]], seed: int
) -> None:
    model = replace(STEADY, pages=80, engine=replace(STEADY.engine, step_ratios=(0.9, 1.0, 1.3)))
    bench = Bench(model, seed)
    jobs = []
    for one in wanted:
        until_s = math.inf if one["until_s"] is None else one["when_s"] + one["until_s"]
        jobs.append(bench.send(**{**one, "until_s": until_s}))  # type: ignore[arg-type]
    bench.run()
    assert set(bench.done) == set(jobs)
    assert bench.worker.load == Load(0, 0, 0, model.slots)
    for job, one in zip(jobs, wanted, strict=True):
        done = bench.done[job]
        assert done.reasoning_tokens <= min(one["budget"] + bool(one["budget"]) * one["grace"], one["wants"])
        assert done.answer_tokens <= one["answer"]
        assert 0 <= done.queue_s <= done.first_token_s <= done.first_answer_s <= done.total_s
        assert done.decode_steps == done.reasoning_tokens + done.answer_tokens + done.complete * (
            done.reasoning_tokens + done.answer_tokens < job.max_output_tokens
        )
        assert 1.0 <= done.mean_batch_size <= model.slots
        steps_s = 0.9 * STEP_S * (done.decode_steps - 1)
        assert done.total_s - done.first_token_s >= steps_s - 1e-9
