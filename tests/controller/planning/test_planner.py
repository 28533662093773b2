"""The planner's decisions, example by example."""

from dataclasses import replace

import pytest

from controller.planning.bounds import CLOSING_TOKENS
from controller.planning.decision import Ask, Decision, Mode, Refusal, RefusedFor
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

CURVE = QualityCurve.through([(0, 0.28), (8, 0.23), (16, 0.33), (32, 0.53), (64, 0.84), (96, 1.0)])
SEEN = Quantiles.of([1.0] * 99)
SPEED = SpeedEstimate(
    wait_s=0.005,
    prefill_s_per_token=0.0001,
    step_s=0.002,
    start_excess=Quantiles.of([0.0] * 99),
    step_ratio=SEEN,
)
LENGTHS = LengthEstimate(answer=Quantiles.of([10.0] * 99), answer_reserve=16)
ASK = Ask(prompt_tokens=50, most_prompt_tokens=60)
TENANT = TenantPolicy(
    name="support",
    rule="tenants[0]",
    version="0123456789ab",
    objectives=Objectives(share=0.95, deadline_s=0.8),
    mode=ModePolicy.AUTO,
    budget=BudgetRange(min_tokens=0, max_tokens=2000, grace=Grace(), answer_tokens=None),
    quality=Quality(),
    weight=1.0,
    priority=3,
    otherwise=Otherwise.REFUSE,
)


def tenant(
    deadline_s: float | None = 0.8,
    *,
    mode: ModePolicy = ModePolicy.AUTO,
    curve: QualityCurve | None = None,
    floor_budget: int = 0,
    otherwise: Otherwise = Otherwise.REFUSE,
    least: int = 0,
    most: int = 2000,
    grace: Grace = Grace(),  # noqa: B008  # frozen
) -> TenantPolicy:
    return replace(
        TENANT,
        objectives=Objectives(share=0.95, deadline_s=deadline_s),
        mode=mode,
        quality=Quality(curve, floor=0.5 if floor_budget else 0.0, floor_budget=floor_budget),
        otherwise=otherwise,
        budget=BudgetRange(least, most, grace, answer_tokens=None),
    )


def decide(
    policy: TenantPolicy, ask: Ask = ASK, speed: SpeedEstimate = SPEED, price: float = 0.0
) -> Decision:
    decision = Prospect.of(ask, policy, LENGTHS, speed, max_sequence_tokens=4096).decide(price)
    assert isinstance(decision, Decision)
    return decision


def refuse(policy: TenantPolicy, ask: Ask = ASK, speed: SpeedEstimate = SPEED) -> Refusal:
    refusal = plan(ask, policy, LENGTHS, speed, max_sequence_tokens=4096)
    assert isinstance(refusal, Refusal)
    return refusal


def test_the_budget_is_what_fits_before_the_deadline() -> None:
    decision = decide(tenant(deadline_s=0.8))
    # 5 ms wait, 7 ms prefill, 18 ms margin; (770 ms) / 2 ms less closing step and 10 tokens of answer.
    assert decision.mode is Mode.THINK
    assert decision.budget_tokens == 375
    assert decision.predicted_s == pytest.approx(0.782)
    assert decision.why == (
        "800 ms at p95: wait 5 ms + prefill 7 ms + 386 tokens × 2 ms = 782 ms fits; "
        "budget 375 of at most 2000, all that fits"
    )


def test_grace_is_part_of_what_must_fit() -> None:
    decision = decide(tenant(deadline_s=0.8, grace=Grace(share=0.1)))
    assert (decision.budget_tokens, decision.grace_tokens) == (340, 34)


def test_reasoning_must_end_in_time_for_the_rest() -> None:
    decision = decide(tenant(deadline_s=0.8, grace=Grace(fixed_tokens=20)))
    # Before 800 ms: 20 tokens of grace, one closing step, 10 tokens of answer, the margin.
    assert decision.reason_until_s == pytest.approx(0.8 - 31 * 0.002 - 0.018)


def test_a_caller_with_time_thinks_as_long_as_it_helps() -> None:
    decision = decide(tenant(deadline_s=10.0, curve=CURVE))
    assert decision.budget_tokens == 96
    assert decision.why.endswith("budget 96 of at most 2000, since more does not pay")


def test_without_a_deadline_only_the_policy_limits() -> None:
    decision = decide(tenant(deadline_s=None, most=500))
    assert decision.budget_tokens == 500
    assert decision.reason_until_s is None
    assert decision.promised_probability == 1.0


def test_reasoning_that_is_known_to_stop_in_time_is_not_held_back() -> None:
    stops = StopCurve.estimate([(100, True)] * 99)
    lengths = replace(LENGTHS, reasoning=stops)
    decision = plan(ASK, tenant(deadline_s=0.5), lengths, SPEED, 4096)
    assert isinstance(decision, Decision)
    assert decision.budget_tokens == 2000
    assert decision.predicted_s == pytest.approx(0.012 + (100 + 1 + 10 - 1) * 0.002)


def test_without_time_to_think_it_answers_at_once() -> None:
    decision = decide(tenant(deadline_s=0.035))
    assert (decision.mode, decision.budget_tokens, decision.grace_tokens) == (Mode.NO_THINK, 0, 0)
    assert decision.reason_until_s is None
    assert decision.why.endswith("no_think, since reasoning does not fit")


def test_too_little_thinking_is_worse_than_none() -> None:
    decision = decide(tenant(deadline_s=0.06, curve=CURVE))  # about ten tokens would fit
    assert decision.mode is Mode.NO_THINK
    assert decision.why.endswith("no_think, since reasoning is not worth its time")


def test_less_than_the_least_budget_is_not_begun() -> None:
    assert decide(tenant(deadline_s=0.2, least=100)).mode is Mode.NO_THINK
    assert decide(tenant(deadline_s=0.3, least=100)).budget_tokens >= 100


def test_a_price_shortens_thinking_until_none_is_worth_it() -> None:
    policy = tenant(deadline_s=10.0, curve=CURVE)
    budgets = [decide(policy, price=price).budget_tokens for price in (0.0, 2.0, 4.0, 10.0)]
    assert budgets == [96, 96, 64, 0]
    outcome = Prospect.of(ASK, policy, LENGTHS, SPEED, 4096).decide(price=20.0)
    assert isinstance(outcome, Refusal)
    assert outcome.reason is RefusedFor.PRICE


@pytest.mark.parametrize(
    ("limit", "budget"),
    [
        (Brownout.NONE, 96),
        (Brownout.LESS, 1),
        (Brownout.NO_THINK, 0),
        (Brownout.QUEUE, None),
        (Brownout.REJECT, None),
    ],
)
def test_no_price_squeezes_further_than_the_policy_lets_it(limit: Brownout, budget: int | None) -> None:
    policy = replace(tenant(deadline_s=10.0, curve=CURVE), brownout=limit)
    outcome = Prospect.of(ASK, policy, LENGTHS, SPEED, 4096).decide(price=1000.0)
    assert (outcome.budget_tokens if isinstance(outcome, Decision) else None) == budget


def test_a_decision_says_how_far_load_has_squeezed_it() -> None:
    policy = tenant(deadline_s=10.0, curve=CURVE)
    levels = [decide(policy, price=price).brownout for price in (0.0, 4.0, 10.0)]
    assert levels == [Brownout.NONE, Brownout.LESS, Brownout.NO_THINK]
    assert decide(policy, price=4.0).why.endswith("since more is not worth its price")
    assert decide(policy, price=10.0).why.endswith("since reasoning is not worth its price")


def test_what_cannot_be_kept_is_refused() -> None:
    refusal = refuse(tenant(deadline_s=0.02))
    assert refusal.predicted_s == pytest.approx(0.030)
    assert refusal.why == (
        "20 ms at p95: wait 5 ms + prefill 7 ms + 10 tokens × 2 ms = 30 ms; "
        "refused, since not every promise can be kept"
    )


def test_or_tried_when_the_policy_says_so() -> None:
    decision = decide(tenant(deadline_s=0.02, otherwise=Otherwise.BEST_EFFORT))
    assert decision.mode is Mode.NO_THINK
    assert not decision.keeps_promise
    assert decision.promised_probability < 0.95
    assert decision.predicted_s > 0.02
    assert decision.why == (
        "20 ms at p95: wait 5 ms + prefill 7 ms + 10 tokens × 2 ms = 30 ms does not keep every promise, "
        "best effort; no_think, since reasoning does not fit"
    )


def test_a_floor_forbids_cheap_answers() -> None:
    assert decide(tenant(deadline_s=0.5, curve=CURVE, floor_budget=30)).budget_tokens >= 30
    refusal = refuse(tenant(deadline_s=0.05, curve=CURVE, floor_budget=30))
    assert refusal.why == (
        "50 ms at p95: wait 5 ms + prefill 7 ms + 41 tokens × 2 ms = 92 ms, 30 of them for the quality "
        "floor; refused, since not every promise can be kept"
    )


def test_in_best_effort_the_floor_gives_way_before_the_deadline_does() -> None:
    policy = tenant(deadline_s=0.09, curve=CURVE, floor_budget=60, otherwise=Otherwise.BEST_EFFORT)
    decision = decide(policy)
    assert 0 < decision.budget_tokens < 60
    assert decision.predicted_s <= 0.09
    assert not decision.keeps_promise


def test_mode_think_thinks_even_when_late() -> None:
    late = tenant(deadline_s=0.02, mode=ModePolicy.THINK, otherwise=Otherwise.BEST_EFFORT, least=20)
    decision = decide(late)
    assert decision.budget_tokens == 20
    assert decision.why.endswith("budget 20 of at most 2000, the least allowed")
    refuse(replace(late, otherwise=Otherwise.REFUSE))


def test_mode_no_think_never_thinks() -> None:
    decision = decide(tenant(deadline_s=10.0, mode=ModePolicy.NO_THINK))
    assert decision.mode is Mode.NO_THINK
    assert decision.why.endswith("no_think by policy")


def test_little_experience_refuses_nobody() -> None:
    cold = replace(SPEED, start_excess=Quantiles(), step_ratio=Quantiles())
    # At the pace measured by the worker itself this takes 12 ms and an answer of at least a token.
    decision = plan(ASK, tenant(deadline_s=0.013), LengthEstimate(), cold, 4096)
    assert isinstance(decision, Decision)
    assert not decision.keeps_promise
    refusal = plan(ASK, tenant(deadline_s=0.011), LengthEstimate(), cold, 4096)
    assert isinstance(refusal, Refusal)


def test_little_experience_promises_little() -> None:
    few = Quantiles.of([0.0] * 30)
    decision = decide(tenant(deadline_s=10.0, curve=CURVE), speed=replace(SPEED, start_excess=few))
    assert decision.promised_probability == pytest.approx(30 / 31)


@pytest.mark.parametrize(
    ("ask", "mode", "budget"),
    [
        (replace(ASK, mode=Mode.NO_THINK), Mode.NO_THINK, 0),
        (replace(ASK, max_reasoning_tokens=0), Mode.NO_THINK, 0),
        (replace(ASK, max_reasoning_tokens=40), Mode.THINK, 40),
        (replace(ASK, max_reasoning_tokens=5000), Mode.THINK, 96),
        (replace(ASK, mode=Mode.THINK), Mode.THINK, 96),
        (replace(ASK, deadline_s=0.1), Mode.THINK, 32),
        (replace(ASK, deadline_s=100.0), Mode.THINK, 96),
    ],
)
def test_wishes_only_ever_take_away(ask: Ask, mode: Mode, budget: int) -> None:
    for policy in (tenant(curve=CURVE), tenant(curve=CURVE, mode=ModePolicy.THINK)):
        decision = decide(policy, ask)
        assert (decision.mode, decision.budget_tokens) == (mode, budget)


def test_a_wish_to_think_is_granted_even_where_it_does_not_pay() -> None:
    policy = tenant(deadline_s=0.06, curve=CURVE)
    assert decide(policy, replace(ASK, mode=Mode.THINK)).mode is Mode.THINK


def test_no_think_below_the_floor_says_that_the_floor_does_not_fit() -> None:
    curve = QualityCurve.through([(0, 0.3), (40, 0.3), (60, 0.9)])
    policy = tenant(deadline_s=0.09, curve=curve, floor_budget=60, otherwise=Otherwise.BEST_EFFORT)
    decision = decide(policy)
    assert decision.mode is Mode.NO_THINK
    assert decision.why.endswith("the 60 tokens that the quality floor asks for do not fit")


def test_a_caller_may_give_up_its_floor() -> None:
    policy = tenant(curve=CURVE, floor_budget=60)
    assert decide(policy, replace(ASK, max_reasoning_tokens=10)).budget_tokens == 10
    assert decide(policy, replace(ASK, mode=Mode.NO_THINK)).mode is Mode.NO_THINK


def test_a_callers_answer_is_never_longer_than_the_reserve() -> None:
    assert decide(tenant(), replace(ASK, max_answer_tokens=4)).answer_tokens == 4
    assert decide(tenant(), replace(ASK, max_answer_tokens=4000)).answer_tokens == 16


def test_of_a_limit_for_all_output_the_answer_takes_its_reserve_and_reasoning_what_is_left() -> None:
    roomy = decide(tenant(), replace(ASK, max_output_tokens=16 + CLOSING_TOKENS + 40))
    assert (roomy.budget_tokens + roomy.grace_tokens, roomy.answer_tokens) == (40, 16)
    tight = decide(tenant(), replace(ASK, max_output_tokens=20))
    assert (tight.mode, tight.answer_tokens) == (Mode.NO_THINK, 16)
    tighter = decide(tenant(mode=ModePolicy.THINK), replace(ASK, max_output_tokens=9))
    assert (tighter.mode, tighter.answer_tokens) == (Mode.NO_THINK, 9)


def test_a_plan_fits_into_the_models_sequence() -> None:
    decision = plan(replace(ASK, most_prompt_tokens=800), tenant(deadline_s=None), LENGTHS, SPEED, 1000)
    assert isinstance(decision, Decision)
    assert 800 + decision.budget_tokens + decision.grace_tokens + decision.answer_tokens + 16 == 1000


@pytest.mark.parametrize(
    ("objectives", "kept"),
    [
        (Objectives(share=0.95, first_token_s=0.013), True),
        (Objectives(share=0.95, first_token_s=0.011), False),
        (Objectives(share=0.95, per_token_s=0.002), True),
        (Objectives(share=0.95, per_token_s=0.0019), False),
        (Objectives(share=0.95, first_answer_token_s=0.013), True),
        (Objectives(share=0.95, first_answer_token_s=0.011), False),
    ],
)
def test_every_objective_must_be_kept(objectives: Objectives, kept: bool) -> None:
    policy = replace(tenant(), objectives=objectives)
    decided = plan(ASK, policy, LENGTHS, SPEED, 4096)
    assert isinstance(decided, Decision) == kept


def test_the_first_answer_token_limits_thinking_too() -> None:
    objectives = Objectives(share=0.95, deadline_s=10.0, first_answer_token_s=0.2)
    decision = decide(replace(tenant(), objectives=objectives))
    first_answer_s = 0.012 + (decision.budget_tokens + 1) * 0.002
    assert 0.19 < first_answer_s <= 0.2
    assert decision.reason_until_s is not None
    assert decision.reason_until_s < 0.2
