"""The level that plans are made at."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.calibration import Calibration, Level

SHARES = st.floats(0.5, 0.99)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
    st.lists(st.floats(0.5, 3.0), min_size=4, max_size=4),
    st.integers(),
)
def test_the_share_holds_however_wrong_the_forecast_is_and_drifts(
    share: float, drift: list[float], seed: int
) -> None:
    """What the forecast calls level u holds with probability u^k; k changes every 500 requests."""
    rng = random.Random(seed)
    calibration, held_count = Calibration(), 0
    for k in drift:
        for _ in range(500):
            held = rng.random() < calibration.level(share).at ** k
            held_count += held
            calibration.note(share, held)
    assert held_count / 2000 == pytest.approx(share, abs=0.02)


def test_what_never_holds_and_what_always_holds_stay_within_reach() -> None:
    calibration = Calibration()
    for _ in range(10_000):
        calibration.note(0.95, held=True)
    lowest = calibration.level(0.95).at
    assert lowest > 0.45
    for _ in range(16):
        calibration.note(0.95, held=False)
    assert calibration.level(0.95).at >= 0.94
    for _ in range(10_000):
        calibration.note(0.95, held=False)
    assert calibration.level(0.95).at < 1


@settings(derandomize=True, deadline=None)
@given(SHARES, st.floats(0.1, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_level_is_a_higher_probability_and_the_planned_one_is_the_share(
    share: float, at: float, one: float, other: float
) -> None:
    level = Level(share, at)
    assert level.probability(at) == share
    assert level.probability(min(one, other)) <= level.probability(max(one, other))
    assert 0 <= level.probability(one) <= 1


@pytest.mark.parametrize(("told", "kept_share"), [(0.9, 0.99), (0.95, 0.8), (0.5, 0.5)])
def test_promised_probabilities_become_the_share_that_is_kept(told: float, kept_share: float) -> None:
    rng, calibration = random.Random(4), Calibration()
    promised = []
    for _ in range(2000):
        promised.append(calibration.level(0.9).promise(told))
        calibration.note_promise(promised[-1], rng.random() < kept_share)
    assert sum(promised[500:]) / 1500 == pytest.approx(kept_share, abs=0.02)


def test_certainties_are_not_calibrated_away() -> None:
    calibration = Calibration()
    for _ in range(100):
        calibration.note_promise(0.9, kept=False)
    assert calibration.level(0.9).promise(1.0) == 1.0
    assert calibration.level(0.9).promise(0.0) == 0.0
