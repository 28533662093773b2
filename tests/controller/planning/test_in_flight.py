"""Moving the end of a running request's reasoning."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.forecast import Pace, Times
from controller.planning.in_flight import Course, Watch

TIMES = Times(deadline_s=1.0, first_token_s=math.inf, first_answer_token_s=math.inf, per_token_s=math.inf)
PACE = Pace(wait_s=0.01, prefill_s=0.01, step_s=0.002, reasoning_tokens=math.inf, answer_tokens=20)
COURSE = Course(TIMES, PACE, budget_tokens=10_000, grace_tokens=10)


def planned(course: Course = COURSE) -> float:
    until_s = course.times.reason_until_s(course.pace, course.grace_tokens)
    assert until_s is not None
    return until_s


def moves(step_s: float, tokens: int = 200, course: Course = COURSE) -> list[float]:
    """Where the end is moved to while tokens come at a pace."""
    watch, moved = Watch(course, planned(course)), []
    for token in range(1, tokens + 1):
        until_s = watch.look(token, 0.02 + token * step_s)
        if until_s is not None:
            watch.reason_until_s = until_s
            moved.append(until_s)
    return moved


def test_what_goes_as_planned_is_left_alone() -> None:
    assert moves(0.002) == []
    assert moves(0.0021) == []


def test_a_slower_pace_ends_the_reasoning_earlier_by_what_the_answer_takes_longer() -> None:
    moved = moves(0.004, tokens=120)
    assert moved
    assert moved == sorted(moved, reverse=True)
    slower = TIMES.reason_until_s(replace(PACE, step_s=0.004), 10)
    assert slower is not None
    assert slower <= moved[-1] < planned()


def test_a_faster_pace_lets_it_go_on() -> None:
    late = replace(COURSE, pace=replace(PACE, answer_tokens=300))
    moved = moves(0.001, tokens=200, course=late)
    assert moved
    assert moved[-1] > planned(late)


def test_a_budget_that_ends_it_before_makes_no_message() -> None:
    assert moves(0.004, course=replace(COURSE, budget_tokens=60), tokens=60) == []


@settings(derandomize=True, deadline=None)
@given(st.floats(0.0005, 0.02), st.integers(1, 300))
def test_looks_are_few_and_every_end_leaves_the_answer_its_time(step_s: float, tokens: int) -> None:
    course = COURSE
    watch = Watch(course, planned())
    looks = 0
    for token in range(1, tokens + 1):
        now_s = 0.02 + token * step_s
        until_s = watch.look(token, now_s)
        if until_s is not None:
            looks += 1
            watch.reason_until_s = until_s
            answer_s = (course.grace_tokens + 1 + PACE.answer_tokens) * watch.step_s
            assert until_s == 0 or until_s + answer_s <= TIMES.deadline_s
    assert looks <= 1 + tokens / 5


def test_one_slow_start_is_no_trend() -> None:
    watch = Watch(COURSE, planned())
    assert watch.look(1, 0.5) is None
    assert watch.look(17, 0.5 + 16 * 0.002) is None
    assert watch.step_s == pytest.approx(0.002)
