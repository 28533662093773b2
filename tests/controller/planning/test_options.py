"""What the ways to serve a request are worth, and what they cost."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.lengths import LengthEstimate, StopCurve
from controller.planning.options import Option, Tariff, best, menu, neutral_curve, options
from controller.planning.quantiles import Quantiles
from controller.policy import QualityCurve

SETTINGS = settings(derandomize=True, deadline=None)
CURVE = QualityCurve.through([(0, 0.3), (40, 0.6), (100, 0.9)])


def lengths(*stops: int) -> LengthEstimate:
    return LengthEstimate(StopCurve.estimate([(stop, True) for stop in stops]), Quantiles())


@st.composite
def choices(draw: st.DrawFn) -> list[Option]:
    budgets = sorted(draw(st.sets(st.integers(0, 500), min_size=1, max_size=8)))
    qualities = [draw(st.floats(0, 1)) for _ in budgets]
    costs = sorted(draw(st.floats(0.01, 10)) for _ in budgets)
    return [Option(*option) for option in zip(budgets, qualities, costs, strict=True)]


def test_an_option_costs_what_it_is_expected_to_use() -> None:
    stopping_at_20 = lengths(*[20] * 99)
    at_once, some, much = options([0, 10, 100], CURVE, stopping_at_20, 5, Tariff(0.5, 0.01))
    assert (at_once.budget, at_once.quality) == (0, 0.3)
    assert at_once.slot_s == pytest.approx(0.5 + 5 * 0.01)
    assert some.slot_s == pytest.approx(0.5 + (10 + 1 + 5) * 0.01)
    # 99 of 100 stop at 20, one would go on to 100.
    assert much.slot_s == pytest.approx(0.5 + (20 + 0.01 * 80 + 1 + 5) * 0.01)


@SETTINGS
@given(choices(), st.floats(0, 100), st.floats(0.1, 10))
def test_the_best_is_worth_no_less_than_any_other(choice: list[Option], price: float, weight: float) -> None:
    chosen = best(choice, weight, price)
    worth = weight * chosen.quality - price * chosen.slot_s
    assert all(worth >= weight * option.quality - price * option.slot_s for option in choice)


@SETTINGS
@given(choices(), st.floats(0.1, 10), st.booleans())
def test_a_menu_falls_in_density_and_never_costs_more_than_the_dearest_option(
    choice: list[Option], weight: float, may_reject: bool
) -> None:
    steps = menu(choice, weight, may_reject=may_reject)
    densities = [step.density for step in steps]
    assert densities == sorted(densities, reverse=True)
    assert all(step.slot_s >= 0 for step in steps)
    assert sum(step.slot_s for step in steps) <= choice[-1].slot_s + 1e-9
    assert may_reject or math.isinf(densities[0])


def test_where_nothing_is_known_more_thinking_is_taken_to_be_evenly_better() -> None:
    curve = neutral_curve(LengthEstimate(), 1000)
    assert [curve.at(budget) for budget in (0, 500, 1000)] == [0.5, 0.75, 1.0]
    assert neutral_curve(LengthEstimate(), 0).at(0) == 0.5


def test_where_only_lengths_are_known_quality_rises_with_reasoning_that_comes_to_its_end() -> None:
    curve = neutral_curve(lengths(*range(10, 110)), 1000)
    assert curve.at(0) == 0.5
    assert curve.at(60) == pytest.approx(0.75, abs=0.02)
    assert curve.at(1000) == pytest.approx(1.0, abs=0.01)
