"""Quality curves learnt from reports."""

import random
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.learnt_quality import HALF_LIFE_S, LEAST_REPORTS, QualityModel
from controller.planning.outcomes import Ended, Trial
from controller.planning.stops import StopCurve
from controller.policy import (
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Quality,
    QualityCurve,
    TenantPolicy,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
MEASURED = QualityCurve.through([(0, 0.39), (16, 0.5), (32, 0.61), (64, 0.78), (128, 0.99)])
HOLLOW = QualityCurve.through([(0, 0.28), (8, 0.23), (16, 0.33), (24, 0.3), (64, 0.84)])
RULE = "tenants[0]"
EASY = StopCurve.estimate([(length, True) for length in range(10, 34)] * 4)
HARD = StopCurve.estimate([(length, True) for length in range(120, 144)] * 4)
REPORTS = st.lists(
    st.tuples(st.sampled_from(Ended), st.integers(0, 150), st.booleans(), st.floats(0, 1)), max_size=80
)


def tenant(
    curve: QualityCurve | None, *, floor: float = 0.0, most: int = 200, learn: bool = True
) -> TenantPolicy:
    floor_budget = (curve.least_budget(floor) or 0) if curve is not None else 0
    return TenantPolicy(
        name="any",
        rule=RULE,
        version="0123456789ab",
        objectives=Objectives(share=0.95),
        mode=ModePolicy.AUTO,
        budget=BudgetRange(0, most, Grace(), None),
        quality=Quality(curve, floor, floor_budget, learn),
        weight=1.0,
        priority=3,
        otherwise=Otherwise.REFUSE,
    )


def learnt(model: QualityModel, policy: TenantPolicy, stops: StopCurve, now_s: float = 0.0) -> QualityCurve:
    curve = model.apply(policy, stops, now_s).quality.curve
    assert curve is not None
    return curve


def told(reports: list[tuple[Ended, int, bool, float]]) -> QualityModel:
    model = QualityModel()
    for ended, tokens, hard, score in reports:
        model.learn(Trial.of(RULE, ended, tokens, HARD if hard else EASY), score, 0.0)
    return model


def truth(ended: Ended, tokens: int, hard: bool) -> float:
    """How often answers are right: harder questions need their reasoning more."""
    if ended is Ended.STOPPED:
        return 0.95
    left = (132 if hard else 22) - tokens
    return max(0.05, 0.9 - left / 100)


def reported(model: QualityModel, count: int, rng: random.Random, now_s: float = 0.0) -> None:
    """Reports of requests with budgets of all kinds."""
    for _ in range(count):
        hard = rng.random() < 0.5
        natural = rng.randrange(120, 144) if hard else rng.randrange(10, 34)
        budget = rng.choice((0, 8, 16, 32, 64, 100, 150))
        ended = Ended.WITHOUT if budget == 0 else Ended.STOPPED if natural <= budget else Ended.CUT
        score = float(rng.random() < truth(ended, budget if ended is Ended.CUT else 0, hard))
        model.learn(Trial.of(RULE, ended, budget, HARD if hard else EASY), score, now_s)


def test_without_reports_the_policy_s_curve_holds() -> None:
    policy = tenant(MEASURED)
    assert QualityModel().apply(policy, EASY, 0.0) is policy


def test_a_curve_that_is_not_to_be_moved_is_not() -> None:
    policy = tenant(MEASURED, learn=False)
    model = told([(Ended.STOPPED, 20, False, 0.0)] * 500)
    assert model.apply(policy, EASY, 0.0) is policy


def test_reports_under_one_rule_say_nothing_of_another() -> None:
    policy = replace(tenant(MEASURED), rule="tenants[0].rules[0]")
    model = told([(Ended.STOPPED, 20, False, 0.0)] * 500)
    assert model.apply(policy, EASY, 0.0) is policy


@SETTINGS
@given(REPORTS.map(lambda reports: reports[:4]), st.sampled_from((MEASURED, HOLLOW)))
def test_few_reports_move_little(reports: list[tuple[Ended, int, bool, float]], prior: QualityCurve) -> None:
    curve = learnt(told(reports), tenant(prior), EASY) if reports else prior
    for budget in range(0, 160, 4):
        assert abs(curve.at(budget) - prior.at(budget)) <= 4 / 24 + 1e-9


def test_many_reports_are_believed_whatever_the_policy_says() -> None:
    model = QualityModel()
    reported(model, 3000, random.Random(1))
    policy = tenant(MEASURED)
    for stops, hard in ((EASY, False), (HARD, True)):
        curve = learnt(model, policy, stops)
        assert abs(curve.at(0) - truth(Ended.WITHOUT, 0, hard)) < 0.1
        assert abs(curve.at(150) - 0.95) < 0.06
    assert learnt(model, policy, EASY).at(33) > 0.88
    assert abs(learnt(model, policy, HARD).at(32) - truth(Ended.CUT, 32, True)) < 0.12


def test_a_few_hundred_reports_bring_the_curve_nearer_to_the_truth() -> None:
    model = QualityModel()
    reported(model, 300, random.Random(2))
    policy = tenant(MEASURED)
    for stops, hard in ((EASY, False), (HARD, True)):
        after, far = learnt(model, policy, stops), 0.0
        before = 0.0
        for budget, ended in ((0, Ended.WITHOUT), (8, Ended.CUT), (64, Ended.CUT), (150, Ended.STOPPED)):
            ends = Ended.STOPPED if not hard and budget > 33 else ended
            right = truth(ends, budget if ends is Ended.CUT else 0, hard)
            far += abs(after.at(budget) - right)
            before += abs(MEASURED.at(budget) - right)
        assert far < 0.6 * before


@SETTINGS
@given(REPORTS, st.sampled_from((MEASURED, None)), st.booleans())
def test_more_thinking_is_never_valued_less(
    reports: list[tuple[Ended, int, bool, float]], prior: QualityCurve | None, hard: bool
) -> None:
    curve = told(reports).apply(tenant(prior), HARD if hard else EASY, 0.0).quality.curve
    if curve is None:
        assert prior is None
        assert len(reports) < LEAST_REPORTS
        return
    assert curve.budgets[0] == 0
    assert all(low < high for low, high in pairwise(curve.budgets))
    assert all(0 <= quality <= 1 for quality in curve.qualities)
    assert all(low <= high + 1e-9 for low, high in pairwise(curve.qualities[1:]))


@SETTINGS
@given(REPORTS.filter(bool))
def test_thinking_more_is_valued_less_only_as_far_as_the_policy_says(
    reports: list[tuple[Ended, int, bool, float]],
) -> None:
    curve = learnt(told(reports), tenant(HOLLOW), EASY)
    for low, high in pairwise(curve.budgets[1:]):
        assert curve.at(high) - curve.at(low) >= min(0.0, HOLLOW.at(high) - HOLLOW.at(low)) - 1e-9


def test_answering_at_once_may_be_best() -> None:
    model = told([(Ended.WITHOUT, 0, False, 1.0)] * 200 + [(Ended.STOPPED, 20, False, 0.2)] * 200)
    curve = learnt(model, tenant(MEASURED), EASY)
    assert curve.at(0) > 0.9 > 0.5 > curve.at(100)


def test_where_the_policy_has_no_curve_enough_reports_make_one() -> None:
    policy = tenant(None)
    model = told([(Ended.STOPPED, 20, False, 1.0)] * (LEAST_REPORTS - 1))
    assert model.apply(policy, EASY, 0.0).quality.curve is None
    reported(model, 2000, random.Random(3))
    easy, hard = learnt(model, policy, EASY), learnt(model, policy, HARD)
    assert easy.at(40) > 0.85
    assert hard.at(40) < 0.4
    assert hard.at(150) > 0.85


def test_reasoning_that_nobody_has_left_out_is_taken_to_help() -> None:
    model = told([(Ended.STOPPED, 20, False, 0.4)] * 100)
    curve = learnt(model, tenant(None), EASY)
    assert curve.at(0) < curve.at(20) < curve.at(40)


def test_old_reports_fade() -> None:
    policy = tenant(MEASURED)
    model = told([(Ended.STOPPED, 20, False, 0.0)] * 200)
    fresh = learnt(model, policy, EASY).at(100)
    after_days = learnt(model, policy, EASY, 8 * HALF_LIFE_S).at(100)
    assert fresh < 0.25
    assert after_days > MEASURED.at(100) - 0.1


def test_a_new_model_is_soon_believed_over_an_old_one() -> None:
    policy = tenant(MEASURED)
    model = told([(Ended.STOPPED, 20, False, 0.0)] * 20_000)
    for _ in range(1000):
        model.learn(Trial.of(RULE, Ended.STOPPED, 20, EASY), 1.0, 0.0)
    assert learnt(model, policy, EASY).at(100) > 0.5


def test_the_floor_moves_with_the_curve() -> None:
    policy = tenant(MEASURED, floor=0.6)
    model = QualityModel()
    reported(model, 3000, random.Random(4))
    easy, hard = (model.apply(policy, stops, 0.0).quality for stops in (EASY, HARD))
    assert easy.floor_budget == 0
    assert 90 < hard.floor_budget < 140
    assert hard.curve is not None
    assert hard.curve.at(hard.floor_budget) >= 0.6


def test_a_floor_that_is_out_of_reach_asks_for_the_best_that_is_granted() -> None:
    policy = tenant(MEASURED, floor=0.7, most=90)
    model = QualityModel()
    reported(model, 3000, random.Random(5))
    quality = model.apply(policy, HARD, 0.0).quality
    assert quality.curve is not None
    assert quality.floor_budget <= 90
    assert quality.curve.at(quality.floor_budget) == max(quality.curve.at(budget) for budget in range(91))


def test_what_was_learnt_is_the_same_object_until_more_is() -> None:
    policy = tenant(MEASURED)
    model = told([(Ended.STOPPED, 20, False, 0.0)] * 200)
    first = model.apply(policy, EASY, 0.0)
    assert model.apply(policy, EASY, 1.0) is first
    reported(model, 40, random.Random(6))
    assert model.apply(policy, EASY, 1.0) is not first
