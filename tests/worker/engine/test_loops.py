"""Degenerate loops are found; repetition with a reason is not."""

import random

import pytest

from worker.engine.loops import LoopDetector, LoopRule


def first_alarm(tokens: list[int], rule: LoopRule) -> int | None:
    """After how many tokens the detector sees a loop."""
    detector = LoopDetector(rule)
    return next((n for n, token in enumerate(tokens, 1) if detector.observe(token)), None)


@pytest.mark.parametrize("period", range(1, 65))
def test_every_period_up_to_64_is_found_in_time(period: int) -> None:
    rng = random.Random(period)
    rule = LoopRule()
    before = [rng.randrange(1000) for _ in range(rng.randrange(3000))]
    loop = [rng.randrange(3) for _ in range(period)]  # few symbols: the unit may repeat within itself
    found = first_alarm(before + loop * 600, rule)
    assert found is not None
    assert found <= len(before) + rule.length(period) + 15


@pytest.mark.parametrize("period", [1, 7, 24, 64])
def test_a_loop_that_stops_short_of_the_threshold_passes(period: int) -> None:
    rule = LoopRule()
    unit = list(range(period))
    text = [1000, *(unit * 600)[: rule.length(period) - 1], 1001] * 4
    assert first_alarm(text, rule) is None


def test_a_period_over_64_passes() -> None:
    assert first_alarm(list(range(65)) * 40, LoopRule()) is None


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{i} + 7 = {i + 7}\n" for i in range(300)),
        "the the " * 3 + "cat sat on the the mat. " * 3,
        "| a | b |\n"
        + "-" * 120
        + "\n"
        + "| 0 | 0 |\n" * 15
        + "so the table is all zeros but the last row\n",
        "".join(
            f"Wait, let me check that again: {i} is {'even' if i % 2 == 0 else 'odd'}.\n" for i in range(99)
        ),
    ],
)
def test_repetition_with_a_reason_passes(text: str) -> None:
    assert first_alarm(list(text.encode()), LoopRule()) is None


def test_a_sentence_over_and_over_is_a_loop() -> None:
    text = "Let me start. " + "Wait, let me check that again. " * 30
    assert first_alarm(list(text.encode()), LoopRule()) is not None


def test_a_rule_may_be_stricter() -> None:
    rule = LoopRule(max_period=4, min_repeats=3, min_tokens=1)
    assert first_alarm([9, 9, 9, 9, *[1, 2, 3] * 4], rule) == 16
    assert first_alarm([9, 9, 9, 9, *[1, 2, 3, 4, 5] * 40], rule) is None


@pytest.mark.parametrize("rule", [(0, 8, 192), (64, 1, 192), (64, 8, 0)])
def test_a_rule_without_sense_is_refused(rule: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a loop needs"):
        LoopRule(*rule)
