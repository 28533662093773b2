"""Quantiles of samples, and how far they are trusted."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.quantiles import Quantiles, SampleWindow

SETTINGS = settings(derandomize=True, deadline=None)
SAMPLES = st.lists(st.floats(0, 10), max_size=60)
LEVELS = st.floats(0.01, 0.999)


def test_a_level_that_the_samples_do_not_reach_is_taken_for_bad() -> None:
    nineteen, eighteen = Quantiles.of(range(19)), Quantiles.of(range(18))
    assert nineteen.at(0.95, beyond=100) == 18
    assert eighteen.at(0.95, beyond=100) == 100
    assert eighteen.at(0.95, beyond=5) == 17
    assert Quantiles().at(0.5, beyond=3) == 3


def test_the_next_value_is_below_the_quantile_as_often_as_promised() -> None:
    rng = random.Random(1)
    trials, kept = 4000, 0
    for _ in range(trials):
        seen = Quantiles.of(rng.lognormvariate(0, 1) for _ in range(39))
        kept += rng.lognormvariate(0, 1) <= seen.at(0.9, beyond=0.0)
    assert abs(kept / trials - 0.9) < 0.02


@SETTINGS
@given(SAMPLES, LEVELS, LEVELS)
def test_a_higher_level_is_never_lower(samples: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    quantiles = Quantiles.of(samples)
    assert quantiles.at(low, beyond=10.0) <= quantiles.at(high, beyond=10.0)


@SETTINGS
@given(SAMPLES, LEVELS)
def test_the_best_case_is_never_above_the_quantile(samples: list[float], level: float) -> None:
    quantiles = Quantiles.of(samples)
    assert quantiles.at_best(level, unseen=0.0) <= quantiles.at(level, beyond=10.0)


def test_a_few_outliers_do_not_prove_that_nothing_is_possible() -> None:
    assert Quantiles.of([50.0]).at_best(0.95, unseen=1.0) == 1.0
    assert Quantiles.of([1.0] * 19 + [50.0]).at_best(0.95, unseen=1.0) == 1.0
    assert Quantiles.of([50.0] * 20).at_best(0.95, unseen=1.0) == 50.0


def test_old_samples_are_forgotten() -> None:
    window = SampleWindow(size=10, max_age_s=100.0)
    window.add(5.0, now_s=0.0)
    assert window.table(now_s=50.0).values == (5.0,)
    assert window.table(now_s=200.0).values == ()


def test_a_window_holds_the_last_samples() -> None:
    window = SampleWindow(size=4, max_age_s=100.0)
    for value in range(10):
        window.add(value, now_s=float(value))
    assert window.table(now_s=10.0).values == (6, 7, 8, 9)


@SETTINGS
@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_a_table_is_never_far_behind_its_samples(samples: list[float]) -> None:
    window = SampleWindow(size=100, max_age_s=1000.0)
    for count, value in enumerate(samples, start=1):
        window.add(value, now_s=0.0)
        missing = min(count, 100) - len(window.table(now_s=0.0).values)
        assert missing <= min(16, count // 8)
