"""What holds for every plan."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controller.planning.bounds import CLOSING_TOKENS
from controller.planning.decision import Ask, Decision, Mode, Refusal
from controller.planning.lengths import LengthEstimate, StopCurve
from controller.planning.planner import Prospect, plan
from controller.planning.quantiles import Quantiles
from controller.planning.speed import SpeedEstimate
from controller.policy import (
    Brownout,
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Quality,
    QualityCurve,
    TenantPolicy,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)
MAX_SEQUENCE_TOKENS = 4096
QUALITIES = (0.2, 0.3, 0.5, 0.8, 0.9)


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most)


def samples(least: float, most: float) -> st.SearchStrategy[Quantiles]:
    """Up to 40 samples, evenly spread. (Drawn one by one they would take most of the time.)"""

    def spread(count: int, low: float, width: float) -> Quantiles:
        return Quantiles(tuple(low + width * index / 40 for index in range(count)))

    return st.builds(spread, st.integers(0, 40), st.floats(least, most), st.floats(0, most - least))


def stops(count: int, mean: int, cut: int) -> StopCurve:
    """Of reasoning around a mean, cut at a length."""
    lengths = [mean * (index + 1) * 2 // (count + 1) for index in range(count)]
    return StopCurve.estimate([(min(length, cut), length <= cut) for length in lengths])


SPEEDS = st.builds(
    SpeedEstimate,
    wait_s=seconds(0.0, 0.5),
    prefill_s_per_token=seconds(1e-6, 1e-3),
    step_s=seconds(1e-4, 0.05),
    start_excess=samples(-0.5, 10.0),
    step_ratio=samples(0.5, 4.0),
)
LENGTHS = st.builds(
    LengthEstimate,
    reasoning=st.builds(stops, st.integers(0, 40), st.integers(1, 400), st.integers(1, 1000)),
    answer=samples(1, 100),
    answer_reserve=st.integers(1, 300),
)
ASKS = st.builds(
    lambda prompt, **wishes: Ask(prompt, prompt + 20, **wishes),
    st.integers(1, 1500),
    mode=st.sampled_from([None, None, Mode.THINK, Mode.NO_THINK]),
    max_reasoning_tokens=st.none() | st.integers(0, 500),
    max_answer_tokens=st.none() | st.integers(1, 500),
    max_output_tokens=st.none() | st.integers(1, 800),
)


@st.composite
def tenants(draw: st.DrawFn) -> TenantPolicy:
    deadline_s = draw(st.none() | seconds(0.01, 20.0))
    earlier = st.none() if deadline_s is None else st.none() | seconds(0.001, deadline_s)
    most = draw(st.integers(0, 1500))
    budgets = sorted(draw(st.sets(st.integers(1, 600), max_size=4)))
    curve = QualityCurve.through([(budget, draw(st.sampled_from(QUALITIES))) for budget in [0, *budgets]])
    floor_budget = draw(st.sampled_from([0, 0, *budgets]))
    return TenantPolicy(
        name="any",
        rule="tenants[0]",
        version="0123456789ab",
        objectives=Objectives(
            share=draw(st.floats(0.5, 0.99)),
            deadline_s=deadline_s,
            first_token_s=draw(earlier),
            first_answer_token_s=draw(earlier),
            per_token_s=draw(st.none() | seconds(0.0001, 0.2)),
        ),
        mode=draw(st.sampled_from(ModePolicy)),
        budget=BudgetRange(
            min_tokens=draw(st.integers(0, most)),
            max_tokens=most,
            grace=draw(st.builds(Grace, st.integers(0, 30)) | st.builds(Grace, share=st.floats(0, 0.5))),
            answer_tokens=draw(st.none() | st.integers(1, 300)),
        ),
        quality=draw(st.sampled_from([Quality(), Quality(curve, curve.at(floor_budget), floor_budget)])),
        weight=1.0,
        priority=3,
        otherwise=draw(st.sampled_from(Otherwise)),
    )


def decide(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate
) -> Decision | Refusal:
    return plan(ask, tenant, lengths, speed, MAX_SEQUENCE_TOKENS)


def with_deadline(tenant: TenantPolicy, deadline_s: float) -> TenantPolicy:
    return replace(tenant, objectives=replace(tenant.objectives, deadline_s=deadline_s))


def budget(decision: Decision | Refusal) -> int:
    """The reasoning budget; a refusal grants less than nothing."""
    return decision.budget_tokens if isinstance(decision, Decision) else -1


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS)
def test_a_plan_stays_in_range(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate
) -> None:
    decision = decide(ask, tenant, lengths, speed)
    assume(isinstance(decision, Decision))
    assert isinstance(decision, Decision)
    assert (decision.mode is Mode.THINK) == (decision.budget_tokens > 0)
    assert 0 <= decision.budget_tokens <= tenant.budget.max_tokens
    assert decision.grace_tokens == (
        tenant.budget.grace.tokens(decision.budget_tokens) if decision.budget_tokens else 0
    )
    assert decision.answer_tokens >= 1
    if ask.max_reasoning_tokens is not None:
        assert decision.budget_tokens <= ask.max_reasoning_tokens
    if ask.max_answer_tokens is not None:
        assert decision.answer_tokens <= ask.max_answer_tokens
    if ask.max_output_tokens is not None:
        closing = CLOSING_TOKENS if decision.budget_tokens else 0
        output = decision.budget_tokens + decision.grace_tokens + closing + decision.answer_tokens
        assert output <= ask.max_output_tokens
    if decision.budget_tokens > 0:
        output = decision.budget_tokens + decision.grace_tokens + decision.answer_tokens
        assert ask.most_prompt_tokens + output <= MAX_SEQUENCE_TOKENS
        assert decision.reason_until_s is None or decision.reason_until_s >= 0
    else:
        assert decision.reason_until_s is None


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS)
def test_what_a_plan_promises_is_predicted_to_be_kept(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate
) -> None:
    decision = decide(ask, tenant, lengths, speed)
    assume(isinstance(decision, Decision) and decision.deadline_s is not None)
    assert isinstance(decision, Decision)
    assert decision.deadline_s is not None
    in_time = decision.predicted_s <= decision.deadline_s
    if decision.keeps_promise:
        assert in_time
        if ask.max_reasoning_tokens is None and ask.mode is not Mode.NO_THINK:
            assert decision.budget_tokens >= tenant.quality.floor_budget
    assert 0 <= decision.promised_probability <= 1
    assert (decision.promised_probability >= tenant.objectives.share) == in_time


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS, seconds(0.01, 20.0), seconds(0.01, 20.0))
def test_a_longer_deadline_never_gives_less(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate, one: float, other: float
) -> None:
    shorter, longer = sorted((one, other))
    tight = decide(ask, with_deadline(tenant, shorter), lengths, speed)
    loose = decide(ask, with_deadline(tenant, longer), lengths, speed)
    assert budget(tight) <= budget(loose)


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS, st.floats(1.0, 5.0))
def test_a_slower_worker_never_gives_more(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate, factor: float
) -> None:
    slower = replace(
        speed,
        wait_s=speed.wait_s * factor,
        prefill_s_per_token=speed.prefill_s_per_token * factor,
        step_s=speed.step_s * factor,
    )
    assert budget(decide(ask, tenant, lengths, slower)) <= budget(decide(ask, tenant, lengths, speed))


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS, st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_a_higher_price_never_gives_more(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    prospect = Prospect.of(ask, tenant, lengths, speed, MAX_SEQUENCE_TOKENS)
    assert budget(prospect.decide(high)) <= budget(prospect.decide(low))


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS, st.floats(1e-3, 50.0), st.sampled_from(Brownout))
def test_a_menu_tells_what_is_taken_at_any_price(
    ask: Ask,
    tenant: TenantPolicy,
    lengths: LengthEstimate,
    speed: SpeedEstimate,
    price: float,
    limit: Brownout,
) -> None:
    prospect = Prospect.of(ask, replace(tenant, brownout=limit), lengths, speed, MAX_SEQUENCE_TOKENS)
    menu = prospect.menu()
    assert [i.density for i in menu] == sorted((i.density for i in menu), reverse=True)
    assume(all(abs(i.density - price) > 1e-6 * price for i in menu))
    taken_s = sum(i.slot_s for i in menu if i.density > price)
    decision = prospect.decide(price)
    used_s = prospect.slot_s(decision.budget_tokens) if isinstance(decision, Decision) else 0.0
    assert taken_s == pytest.approx(used_s, rel=1e-6, abs=1e-9)


@SETTINGS
@given(ASKS, tenants(), LENGTHS, SPEEDS)
def test_best_effort_always_answers_and_never_decides_otherwise_when_the_promise_holds(
    ask: Ask, tenant: TenantPolicy, lengths: LengthEstimate, speed: SpeedEstimate
) -> None:
    refusing = decide(ask, replace(tenant, otherwise=Otherwise.REFUSE), lengths, speed)
    trying = decide(ask, replace(tenant, otherwise=Otherwise.BEST_EFFORT), lengths, speed)
    assert isinstance(trying, Decision)
    assert isinstance(refusing, Refusal) or refusing == trying
