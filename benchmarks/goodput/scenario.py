"""What comes: requests of tenants with deadlines from tight to loose, out of a real trace."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.goodput.accuracy import Accuracy
from benchmarks.replay import DEMO_REASONING, problem_like, reasoning_length
from controller.simulation.job import Done, Nature
from controller.simulation.judge import Judge
from controller.simulation.requests import Request
from controller.simulation.speed import WorkerModel
from controller.simulation.trace import Arrival, ReasoningEnd, Trace, read_trace
from demo.problems import MAX_NUMBERS, MIN_NUMBERS, Problem

TRACES = Path(__file__).parents[1] / "traces"
NAMED = 9
"""Tenants with a name of their own, by number of requests; all others are one more."""
DEADLINES = (1.5, 0.6, 3.0, 1.0, 2.0, 0.8, 4.0, 1.2, 2.5, 1.5)
"""By tenant, in times of what its median request takes with all the thinking that it wants, in a full batch.
"""
REST_S = 0.1
"""Added to that: what does not depend on lengths."""
BURST = 10
BURST_TENANT = "t0"
"""The one that sends most."""
BURST_PART = (0.4, 0.7)
"""Of the time."""
SAMPLE = 1000
"""Requests that tell what one of them wants."""
BOUNDARY_TOKENS = 6
"""Mean tokens to the end of a line."""
SHARE = 0.9
"""Of requests, that every tenant is promised within its deadline."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request that will come. numbers: in the problem, which says how hard it is."""

    request: Request
    problem: Problem
    numbers: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """Questions in the order of their arrival, and the tenants' deadlines. scored_from: questions before this
    one warm everything up and do not count.
    """

    name: str
    questions: tuple[Question, ...]
    deadlines_s: Mapping[str, float]
    scored_from: int

    @property
    def duration_s(self) -> float:
        """To the last arrival."""
        return self.questions[-1].request.arrival.arrival_s

    @property
    def scored(self) -> tuple[Question, ...]:
        """Those that count."""
        return self.questions[self.scored_from :]


@dataclass(frozen=True, slots=True)
class Kind:
    """Which trace, at which lengths, on what worker.

    demo: lengths are those of the demo's problems; otherwise the trace's own.
    """

    trace: str
    model: WorkerModel
    demo: bool

    def base(self, requests: int, seed: int) -> Scenario:
        """A part of the trace as it is, before its pace is set."""
        trace = read_trace(TRACES / f"{self.trace}.csv")
        arrivals = _part(trace, requests, seed)
        rank = {
            name: index
            for index, (name, _) in enumerate(Counter(a.tenant for a in trace.arrivals).most_common())
        }
        random = Random(f"curfew-goodput-{self.trace}-{seed}")
        lengths = sorted(arrival.reasoning_tokens for arrival in trace.arrivals)
        questions = tuple(
            self._question(arrival, f"t{min(rank[arrival.tenant], NAMED)}", lengths, random)
            for arrival in arrivals
        )
        deadlines_s = {
            f"t{index}": self._deadline_s(
                [q for q in questions if q.request.tenant == f"t{index}"], DEADLINES[index]
            )
            for index in range(NAMED + 1)
        }
        return Scenario("base", questions, deadlines_s, len(questions) // 4)

    def _question(self, arrival: Arrival, tenant: str, lengths: Sequence[int], random: Random) -> Question:
        if self.demo:
            low, high = DEMO_REASONING
            wanted = min(max(low, arrival.reasoning_tokens * high // lengths[int(0.95 * len(lengths))]), high)
            problem = problem_like(wanted, random)
            numbers = len(problem.numbers)
            reasoning, prompt = reasoning_length(problem), len(problem.question) + 40
            answer = len(problem.answer) + 1
        else:
            hardness = bisect_left(lengths, arrival.reasoning_tokens) / len(lengths)
            numbers = MIN_NUMBERS + round(hardness * (MAX_NUMBERS - MIN_NUMBERS))
            problem = Problem((0,) * numbers)
            reasoning, prompt, answer = arrival.reasoning_tokens, arrival.input_tokens, arrival.answer_tokens
        nature = Nature(
            max(1, prompt), max(1, reasoning), max(1, answer), random.randrange(2 * BOUNDARY_TOKENS + 1)
        )
        request = Request(replace(arrival, tenant=tenant), tenant, nature, random.random(), random.random())
        return Question(request, problem, numbers)

    def _deadline_s(self, questions: Sequence[Question], factor: float) -> float:
        natures = [question.request.nature for question in questions]
        if not natures:
            return 1.0
        step_s = max(self.model.decode.step_s(self.model.slots), self.model.engine.least_step_s)
        tokens = median(n.reasoning_tokens + n.answer_tokens for n in natures)
        prefill_s = median(n.prompt_tokens for n in natures) / self.model.prefill_tokens_per_s
        return REST_S + factor * (prefill_s + tokens * step_s)

    def wanted(self, scenario: Scenario) -> float:
        """Slot-seconds of all questions with all the thinking that they want."""
        model = self.model
        step_s = max(model.decode.step_s(model.slots), model.engine.least_step_s)
        return sum(
            n.prompt_tokens / model.prefill_tokens_per_s * model.slots
            + (n.reasoning_tokens + n.answer_tokens) * step_s
            for n in (question.request.nature for question in scenario.questions)
        )


def requests_for(kind: Kind, load: float, seconds: float, seed: int) -> int:
    """How many requests make such a load for so long, about."""
    sample = kind.base(SAMPLE, seed)
    return round(load * seconds * kind.model.slots / (kind.wanted(sample) / SAMPLE))


def at_load(kind: Kind, base: Scenario, name: str, load: float) -> Scenario:
    """At a pace at which what is wanted takes so many times what the worker's slots have."""
    factor = kind.wanted(base) / (load * kind.model.slots) / base.duration_s
    questions = tuple(
        replace(q, request=_moved(q.request, q.request.arrival.arrival_s * factor)) for q in base.questions
    )
    return replace(base, name=name, questions=questions)


def with_burst(scenario: Scenario, seed: int) -> Scenario:
    """One tenant sends ten times as much for a while."""
    random = Random(f"curfew-burst-{seed}")
    begin_s, end_s = (part * scenario.duration_s for part in BURST_PART)
    own = [q for q in scenario.questions if q.request.tenant == BURST_TENANT]
    during = [q for q in own if begin_s <= q.request.arrival.arrival_s < end_s]
    more = []
    for _ in range((BURST - 1) * len(during)):
        like = random.choice(own)
        when_s = random.uniform(begin_s, end_s)
        request = replace(_moved(like.request, when_s), luck=random.random(), haste=random.random())
        more.append(replace(like, request=request))
    questions = sorted((*scenario.questions, *more), key=lambda q: q.request.arrival.arrival_s)
    first = scenario.questions[scenario.scored_from].request.arrival.arrival_s
    scored_from = sum(q.request.arrival.arrival_s < first for q in questions)
    return replace(scenario, name="burst", questions=tuple(questions), scored_from=scored_from)


def judge(accuracy: Accuracy, questions: Sequence[Question]) -> Judge:
    """How often an answer is right, by how far its reasoning came."""
    numbers = {id(question.request): question.numbers for question in questions}

    def right(request: Request, done: Done) -> float:
        if not done.complete:
            return 0.0
        natural = done.reasoning_end is ReasoningEnd.NATURAL
        fraction = 1.0 if natural else done.reasoning_tokens / request.nature.reasoning_tokens
        return accuracy.at(numbers[id(request)], min(1.0, fraction))

    return right


def _moved(request: Request, arrival_s: float) -> Request:
    return replace(request, arrival=replace(request.arrival, arrival_s=arrival_s))


def _part(trace: Trace, requests: int, seed: int) -> tuple[Arrival, ...]:
    """So many consecutive arrivals, from a place that depends on the seed; times from 0."""
    first = (seed * requests) % max(1, len(trace.arrivals) - requests)
    part = trace.arrivals[first : first + requests]
    return tuple(replace(arrival, arrival_s=arrival.arrival_s - part[0].arrival_s) for arrival in part)
