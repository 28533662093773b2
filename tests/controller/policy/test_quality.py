"""The quality curve."""

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


def test_the_points_within_a_range_come_with_its_ends() -> None:
    assert HOLLOW.points_within(1, 2000) == [1, 8, 16, 32, 64, 96, 2000]
    assert HOLLOW.points_within(16, 64) == [16, 32, 64]
    assert HOLLOW.points_within(20, 20) == [20]


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
