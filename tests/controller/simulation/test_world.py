"""A simulated pool: the same luck for every policy, the same outcome for the same seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.policy import Policy, parse_policy
from controller.simulation.judge import Problems, judge_of
from controller.simulation.requests import Request, prepare
from controller.simulation.speed import PRESETS, EngineDetails
from controller.simulation.summary import Summary, summaries
from controller.simulation.trace import Arrival, Outcome, ReasoningEnd, Trace
from controller.simulation.world import Run, simulate

MODEL = replace(PRESETS["9b-h200"], slots=16, engine=EngineDetails(step_ratios=(0.98, 1.0, 1.1)))
CURVE = "curves: {c: [[0, 0.4], [100, 0.6], [400, 0.9], [800, 0.95]]}\n"


def policy(settings: str = "", tenants: str = "  - {name: a, objectives: {deadline: 8s}}\n") -> Policy:
    text = f"apiVersion: curfew/v1\n{CURVE}defaults:\n  quality: {{curve: c}}\n{settings}tenants:\n{tenants}"
    return parse_policy(text, "p.yaml", None)


def requests(count: int = 60, every_s: float = 0.2, tenant: str = "a", reasoning: int = 200) -> list[Request]:
    arrivals = tuple(
        Arrival(n * every_s, tenant, 100, reasoning + 7 * (n % 40), 20 + n % 30) for n in range(count)
    )
    return prepare(Trace("t", arrivals), lambda arrival, _: arrival.tenant, 0, 10.0)


def run(tried: Policy, wanted: list[Request], seed: int = 0, workers: int = 1) -> Run:
    judge = judge_of([tried], wanted)
    return simulate(tried, wanted, MODEL, workers=workers, judge=judge, seed=seed)


def outcomes(done: Run) -> list[tuple[Outcome, float, bool]]:
    return [(record.outcome, record.latency_s, record.right) for record in done.records]


def test_a_seed_gives_the_same_outcome_again_and_another_a_different_one() -> None:
    wanted = requests()
    assert outcomes(run(policy(), wanted, 1)) == outcomes(run(policy(), wanted, 1))
    assert outcomes(run(policy(), wanted, 1)) != outcomes(run(policy(), wanted, 2))


def test_every_request_comes_to_one_end_however_heavy_the_load() -> None:
    wanted = requests(300, 0.01, reasoning=2000)
    done = run(policy(), wanted)
    assert [record.request for record in done.records] == wanted
    ends = {record.outcome for record in done.records}
    assert ends <= {Outcome.ANSWERED, Outcome.REFUSED, Outcome.REJECTED}
    assert Outcome.REJECTED in ends
    for record in done.records:
        assert (record.done is not None) == (record.outcome is Outcome.ANSWERED)
        assert record.done is not None or record.why


def test_without_thinking_nothing_is_reasoned_and_answers_come_sooner() -> None:
    wanted = requests()
    thinking, not_thinking = run(policy(), wanted), run(policy("  mode: no_think\n"), wanted)
    slow, fast = Summary.of(thinking.records), Summary.of(not_thinking.records)
    assert fast.reasoning == 0
    assert fast.no_think == 1.0
    assert fast.p50_s < slow.p50_s
    assert fast.quality < slow.quality


def test_more_workers_never_keep_fewer_promises_under_overload() -> None:
    wanted = requests(300, 0.02, reasoning=1000)
    one, four = (Summary.of(run(policy(), wanted, workers=n).records) for n in (1, 4))
    assert four.kept > one.kept


def test_an_answer_that_is_right_stays_right_under_a_policy_that_is_better_for_it() -> None:
    wanted = requests()
    small, large = (run(policy(f"  budget: {{max: {budget}, grace: 0}}\n"), wanted) for budget in (50, 800))
    better = [
        (before.right, after.right)
        for before, after in zip(small.records, large.records, strict=True)
        if after.chance >= before.chance
    ]
    assert better
    assert all(after for before, after in better if before)


def test_deadlines_of_callers_and_labels_reach_the_planner() -> None:
    tenants = (
        "  - name: a\n    objectives: {deadline: 8s}\n    rules: [{match: {task: quick}, mode: no_think}]\n"
    )
    arrivals = (
        Arrival(0.0, "a", 10, 100, 5, labels={"task": "quick"}),
        Arrival(10.0, "a", 10, 100, 5, deadline_s=2.0),
    )
    wanted = prepare(Trace("t", arrivals), lambda arrival, _: "a", 0, 0.0)
    quick, hurried = run(policy(tenants=tenants), wanted).records
    assert quick.done is not None
    assert quick.done.reasoning_end is ReasoningEnd.NONE
    assert hurried.decision is not None
    assert hurried.decision.deadline_s == 2.0


def test_prices_are_told_each_second_and_an_idle_pool_has_none() -> None:
    done = run(policy(), requests(5, 1.0))
    assert [sample[0] for sample in done.prices][:4] == [0.0, 1.0, 2.0, 3.0]
    assert {sample[1] for sample in done.prices} == {0.0}


def test_what_is_not_served_counts_as_not_kept() -> None:
    done = run(policy(), requests(300, 0.01, reasoning=2000))
    summary = summaries(done)["a"]
    assert summary.requests == 300
    assert summary.kept <= 1 - summary.rejected - summary.refused + 1e-9
    assert summary.goodput <= summary.kept


# Whether answers are right.


def test_whole_and_cut_reasoning_together_are_as_good_as_the_curve_says() -> None:
    curve = policy().tenants["a"].quality.curve
    assert curve is not None
    lengths = list(range(10, 1000, 10))
    problems = Problems(curve, lengths)
    for budget in (150, 300, 600):
        stopped = sum(length <= budget for length in lengths) / len(lengths)
        together = stopped * problems.whole + (1 - stopped) * problems.cut_at(budget)
        assert together == pytest.approx(curve.at(budget))
    assert problems.cut_at(0) == 0.4


def test_a_cut_is_never_better_than_the_whole_nor_worse_than_wrong() -> None:
    curve = policy().tenants["a"].quality.curve
    for lengths in ([5] * 10, [5000] * 10):
        problems = Problems(curve, lengths)
        for tokens in (1, 50, 500, 4000):
            assert 0.0 <= problems.cut_at(tokens) <= problems.whole


def test_without_a_curve_what_came_to_its_own_end_is_taken_to_be_right() -> None:
    problems = Problems(None, [5])
    assert (problems.whole, problems.cut_at(3)) == (1.0, 0.5)


def test_an_answer_that_was_cut_off_is_wrong() -> None:
    tried = policy("  mode: no_think\n  budget: {answer: 25}\n")
    wanted = requests(20)
    done = run(tried, wanted)
    cut = [record for record in done.records if record.done is not None and not record.done.complete]
    assert 0 < len(cut) < 20
    assert {record.chance for record in cut} == {0.0}
