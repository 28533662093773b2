"""Lengths by classes of prompts."""

import random
from collections.abc import Callable, Collection

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.strata import PromptStrata, Sample
from demo.problems import draw

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
LEAST = 24


def members(samples: Collection[Sample]) -> tuple[Sample, ...]:
    return tuple(samples)


def strata_of(
    samples: Collection[tuple[int, int, bool]], max_age_s: float = 100.0
) -> PromptStrata[tuple[Sample, ...]]:
    strata = PromptStrata(512, max_age_s, LEAST, members)
    for prompt, tokens, stopped in samples:
        strata.add((prompt, tokens, stopped, 0.0))
    return strata


def drawn(count: int, length: Callable[[random.Random, int], int], seed: int) -> list[tuple[int, int, bool]]:
    """Prompts of 30 to 100,000 tokens, all lengths to their own end."""
    rng = random.Random(seed)
    prompts = [round(30 * 10 ** rng.uniform(0, 3.5)) for _ in range(count)]
    return [(prompt, length(rng, prompt), True) for prompt in prompts]


def mean_of(samples: Collection[Sample]) -> float:
    return sum(tokens for _, tokens, _, _ in samples) / len(samples)


def test_sums_of_few_and_of_many_numbers_are_told_apart() -> None:
    rng = random.Random(1)
    problems = [draw(rng) for _ in range(512)]
    strata = strata_of([(len(p.question), len("\n".join(p.reasoning)), True) for p in problems])
    apart = together = 0.0
    for problem in (draw(rng) for _ in range(300)):
        tokens = len("\n".join(problem.reasoning))
        apart += abs(tokens - mean_of(strata.of(len(problem.question), 0.0)))
        together += abs(tokens - mean_of(strata.overall(0.0)))
    assert apart < 0.4 * together


def test_prompts_of_very_different_length_are_told_apart_where_lengths_follow_them() -> None:
    strata = strata_of(drawn(512, lambda rng, prompt: round(prompt**0.5 * rng.uniform(0.8, 1.2)), 2))
    for prompt in (50, 500, 5000, 50_000):
        assert 0.5 < mean_of(strata.of(prompt, 0.0)) / prompt**0.5 < 2


def test_prompts_that_tell_nothing_mostly_stay_one_class() -> None:
    divided = 0
    for seed in range(40):
        strata = strata_of(drawn(200, lambda rng, prompt: round(rng.expovariate(0.01)), seed))
        divided += strata.of(30, 0.0) is not strata.overall(0.0)
    assert divided <= 4


def test_reasoning_that_was_cut_early_does_not_make_a_class_of_short_reasoning() -> None:
    rng = random.Random(5)
    seen = []
    for _ in range(400):
        tokens, long_prompt = round(rng.expovariate(1 / 100)), rng.random() < 0.5
        cut = 50 if long_prompt else 500
        seen.append((200 if long_prompt else 100, min(tokens, cut), tokens <= cut))
    strata = strata_of(seen)
    assert strata.of(100, 0.0) is strata.of(200, 0.0)


@SETTINGS
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9), st.booleans()), max_size=200))
def test_every_sample_is_in_one_class_and_equal_prompts_share_one(
    samples: list[tuple[int, int, bool]],
) -> None:
    strata = strata_of(samples)
    known = strata.overall(0.0)
    classes = {id(found): found for prompt in range(8) if (found := strata.of(prompt, 0.0))}
    assert sorted(sample for found in classes.values() for sample in found) == sorted(known)
    assert all(sample in strata.of(sample[0], 0.0) for sample in known)
    if len(classes) > 1:
        assert all(len(found) >= LEAST for found in classes.values())
    assert len(samples) - len(known) <= max(1, min(32, len(samples) // 8))


def test_old_samples_are_forgotten() -> None:
    strata = strata_of([(10, 5, True)] * 7)
    assert len(strata.of(10, 50.0)) == 7
    assert strata.of(10, 200.0) == () == strata.overall(200.0)


def test_a_window_holds_the_last_samples() -> None:
    strata = strata_of([(10, 5, True)] * 400 + [(10, 7, True)] * 600)
    assert {tokens for _, tokens, _, _ in strata.overall(0.0)} == {7}
