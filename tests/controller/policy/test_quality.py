"""The quality curve."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policy import Grace, QualityCurve

SETTINGS = settings(derandomize=True, deadline=None)
HOLLOW = QualityCurve.through([(0, 0.28), (8, 0.23), (16, 0.33), (32, 0.53), (64, 0.84), (96, 1.0)])


@st.composite
def curves(draw: st.DrawFn) -> QualityCurve:
    budgets = draw(st.sets(st.integers(1, 60), max_size=6))
    return QualityCurve.through([(budget, draw(st.floats(0, 1))) for budget in [0, *sorted(budgets)]])


def quality_alone(quality: float, budget: int) -> float:
    return quality


def test_quality_is_linear_between_points_and_level_after_the_last() -> None:
    assert HOLLOW.at(4) == (0.28 + 0.23) / 2
    assert HOLLOW.at(96) == HOLLOW.at(5000) == 1.0


def test_no_more_is_taken_than_raises_quality() -> None:
    assert HOLLOW.best_budget(1, 2000, quality_alone) == (96, 1.0)


def test_a_price_buys_less() -> None:
    budget, _ = HOLLOW.best_budget(1, 2000, lambda quality, budget: quality - 0.006 * budget)
    assert budget == 64


@SETTINGS
@given(curves(), st.integers(0, 80), st.integers(0, 80), st.floats(0, 0.05))
def test_the_best_budget_is_the_best_of_all(curve: QualityCurve, one: int, other: int, price: float) -> None:
    least, most = sorted((one, other))
    worth: Callable[[float, int], float] = lambda quality, budget: quality - price * budget  # noqa: E731
    budget, value = curve.best_budget(least, most, worth)
    assert least <= budget <= most
    assert value == worth(curve.at(budget), budget)
    assert value >= max(worth(curve.at(b), b) for b in range(least, most + 1)) - 1e-9


@SETTINGS
@given(curves(), st.floats(0, 1))
def test_the_least_budget_of_a_quality_is_the_first_that_reaches_it(
    curve: QualityCurve, quality: float
) -> None:
    reaching = [budget for budget in range(100) if curve.at(budget) >= quality]
    assert curve.least_budget(quality) == (reaching[0] if reaching else None)


@SETTINGS
@given(st.integers(0, 40), st.floats(0, 1), st.integers(0, 3000))
def test_the_largest_budget_within_a_cut_is_the_largest(fixed: int, share: float, cut: int) -> None:
    for grace in (Grace(fixed_tokens=fixed), Grace(share=share)):
        budget = grace.largest_budget(cut)
        assert budget == 0 or budget + grace.tokens(budget) <= cut
        assert budget + 1 + grace.tokens(budget + 1) > cut
