"""Lengths of prompts, reasoning and answers."""

import math
import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.lengths import COLD_ANSWER_TOKENS, LEAST_ANSWER_TOKENS, LengthModel, StopCurve

SETTINGS = settings(derandomize=True, deadline=None)
OBSERVATIONS = st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60)


def product_limit(observations: list[tuple[int, bool]], tokens: int) -> float:
    """Kaplan and Meier's formula as it stands in the textbook, with one more reasoning that never stops."""
    survival = 1.0
    for length in sorted({length for length, stopped in observations if stopped and length <= tokens}):
        at_risk = 1 + sum(other >= length for other, _ in observations)
        survival *= 1 - sum(other == (length, True) for other in observations) / at_risk
    return 1 - survival


@SETTINGS
@given(OBSERVATIONS)
def test_the_curve_is_the_product_limit_estimate(observations: list[tuple[int, bool]]) -> None:
    curve = StopCurve.estimate(observations)
    for length, stopped in zip(curve.lengths, curve.stopped, strict=True):
        assert math.isclose(stopped, product_limit(observations, length), abs_tol=1e-12)


@SETTINGS
@given(OBSERVATIONS, st.integers(0, 60))
def test_expected_use_is_the_area_under_survival(observations: list[tuple[int, bool]], budget: int) -> None:
    curve = StopCurve.estimate(observations)
    area = sum(1 - product_limit(observations, tokens) for tokens in range(budget))
    assert math.isclose(curve.expected_use(budget), area, abs_tol=1e-9)


@SETTINGS
@given(OBSERVATIONS)
def test_the_quantile_rises_with_the_level(observations: list[tuple[int, bool]]) -> None:
    curve = StopCurve.estimate(observations)
    quantiles = [curve.quantile(level / 100) for level in range(1, 100)]
    assert all(low <= high for low, high in pairwise(quantiles))


def test_reasoning_that_was_cut_counts_as_longer_than_its_cut() -> None:
    rng = random.Random(2)
    lengths = [round(rng.expovariate(1 / 100)) for _ in range(2000)]
    cuts = [rng.choice((40, 80, 160)) for _ in lengths]
    seen = [(min(length, cut), length <= cut) for length, cut in zip(lengths, cuts, strict=True)]
    curve = StopCurve.estimate(seen)
    naive = sorted(tokens for tokens, _ in seen)[len(seen) // 2]
    assert abs(curve.quantile(0.5) - 100 * math.log(2)) < 8
    assert naive < 55


def test_without_observations_reasoning_is_not_known_to_stop() -> None:
    assert StopCurve.estimate([]).quantile(0.01) == math.inf
    assert StopCurve.estimate([(50, False)] * 100).quantile(0.01) == math.inf
    assert StopCurve().expected_use(70) == 70


def test_the_answer_reserve_follows_the_answers() -> None:
    lengths = LengthModel()
    assert lengths.estimate(0.0).answer_reserve == COLD_ANSWER_TOKENS
    for _ in range(200):
        lengths.learn_answer(5, 0.0)
    assert lengths.estimate(0.0).answer_reserve == LEAST_ANSWER_TOKENS
    for _ in range(400):
        lengths.learn_answer(100, 0.0)
    assert lengths.estimate(0.0).answer_reserve == 150


def test_prompt_estimates_correct_themselves() -> None:
    lengths = LengthModel()
    rng = random.Random(3)
    for _ in range(40):
        size = rng.randrange(200, 2000)
        exact = round(size / 3.1)
        lengths.learn_prompt(lengths.prompt_tokens(size, bytes_per_token=4.5), exact)
    assert abs(lengths.prompt_tokens(3100, bytes_per_token=4.5) - 1000) < 30


def test_a_prompt_of_another_kind_is_expected_to_take_other_lengths() -> None:
    rng = random.Random(4)
    lengths = LengthModel()
    for _ in range(300):
        hard = rng.random() < 0.5
        prompt = rng.randrange(90, 110) if hard else rng.randrange(40, 60)
        lengths.learn_reasoning(rng.randrange(180, 220) if hard else rng.randrange(20, 30), True, prompt)
        lengths.learn_answer(30 if hard else 3, 0.0, prompt)
    easy, hard_one, any_one = (lengths.estimate(0.0, prompt) for prompt in (50, 100, None))
    assert easy.reasoning.quantile(0.9) < 30 < 180 <= hard_one.reasoning.quantile(0.1)
    assert easy.answer.median == 3
    assert hard_one.answer.median == 30
    assert any_one.reasoning.quantile(0.1) < 30 < 180 <= any_one.reasoning.quantile(0.9)
    assert easy.answer_reserve == hard_one.answer_reserve == any_one.answer_reserve == 45


@SETTINGS
@given(OBSERVATIONS, st.integers(0, 40), st.integers(0, 60))
def test_what_was_reached_without_a_stop_is_known(
    observations: list[tuple[int, bool]], reached: int, more: int
) -> None:
    curve = StopCurve.estimate(observations)
    left = 1 - product_limit(observations, reached - 1)
    budget = reached + more
    area = sum(1 - product_limit(observations, tokens) for tokens in range(reached, budget))
    assert math.isclose(curve.expected_use(budget, reached), reached + area / left, abs_tol=1e-9)
    for level in (0.1, 0.5, 0.9):
        length = curve.quantile(level, reached)
        assert length >= reached
        if length < math.inf:
            stopped = (product_limit(observations, int(length)) - 1 + left) / left
            assert stopped >= level - 1e-6
            at_most = product_limit(observations, int(length))
            assert math.isclose(curve.stopped_by(int(length)), at_most, abs_tol=1e-12)
