"""The speed model of a worker."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.forecast import Forecast
from controller.planning.lengths import LengthEstimate
from controller.planning.speed import COLD_RATIO, DecodeCurve, Load, Observation, SpeedModel

IDLE = Load(running=0, waiting=0, prefill_backlog_tokens=0, free_slots=4)
FULL = Load(running=4, waiting=0, prefill_backlog_tokens=0, free_slots=0)


def model(step_s: float = 0.002) -> SpeedModel:
    return SpeedModel(DecodeCurve.through([(1, step_s), (4, 2 * step_s)]), 10_000.0, slots=4)


def observe(
    speed: SpeedModel,
    count: int,
    ratio: float,
    now_s: float = 0.0,
    *,
    prompt_tokens: int = 100,
    steps: int = 100,
    late_s: float = 0.001,
    joined_by: int = 0,
) -> None:
    """Requests sent to an idle worker, whose every step took `ratio` times what was measured for its batch.

    late_s: later than expected, everything before the first token. joined_by: others, right after that.
    """
    for _ in range(count):
        expected = speed.estimate(IDLE, prompt_tokens, now_s)
        step_s = model().estimate(replace(IDLE, running=joined_by), prompt_tokens, now_s).step_s
        seen = Observation(
            prompt_tokens=prompt_tokens,
            start_s=expected.wait_s + expected.prefill_s(prompt_tokens) + late_s,
            decode_s=steps * step_s * ratio,
            decode_steps=steps,
            mean_batch_size=1 + joined_by,
            service_s=0.5,
        )
        speed.learn(expected, seen, now_s)


def step_s(speed: SpeedModel, level: float, now_s: float = 0.0, load: Load = IDLE) -> float:
    return Forecast(speed.estimate(load, 100, now_s), LengthEstimate(), 100, 10).at(level).step_s


def late_s(speed: SpeedModel, level: float, prompt_tokens: int = 100) -> float:
    """How much later than expected the first token is planned for."""
    estimate = speed.estimate(IDLE, prompt_tokens, 0.0)
    pace = Forecast(estimate, LengthEstimate(), prompt_tokens, 10).at(level)
    return pace.start_s - estimate.wait_s - estimate.prefill_s(prompt_tokens)


def test_steps_between_and_beyond_measured_batches_are_on_the_line() -> None:
    curve = DecodeCurve.through([(4, 0.004), (1, 0.001), (8, 0.006)])
    assert [curve.step_s(size) for size in (1, 2, 4, 6, 8, 16)] == pytest.approx(
        [0.001, 0.002, 0.004, 0.005, 0.006, 0.010]
    )
    assert DecodeCurve.through([(2, 0.003)]).step_s(7) == 0.003


def test_a_batch_that_measured_slower_than_a_larger_one_was_disturbed() -> None:
    curve = DecodeCurve.through([(1, 0.009), (2, 0.001), (4, 0.003)])
    assert [curve.step_s(size) for size in (1, 2, 4)] == [0.001, 0.001, 0.003]


def test_a_worker_without_a_measured_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no decode step was measured"):
        DecodeCurve.through([(0, 0.001), (1, 0.0)])


def test_an_unknown_worker_is_planned_with_care() -> None:
    assert step_s(model(), 0.95) == pytest.approx(0.002 * COLD_RATIO)


def test_what_requests_take_replaces_the_care() -> None:
    speed = model()
    observe(speed, 40, ratio=1.1)
    assert step_s(speed, 0.95) == pytest.approx(0.0022)
    assert late_s(speed, 0.95) == pytest.approx(0.001)


def test_a_worker_that_is_faster_than_it_measured_is_soon_known_to_be() -> None:
    speed = model()
    observe(speed, 6, ratio=0.4)
    assert step_s(speed, 0.95) <= 0.4 * 0.002 * COLD_RATIO + 1e-9


def test_a_stall_in_a_short_answer_says_nothing_about_the_pace() -> None:
    speed = model()
    observe(speed, 40, ratio=1.0)
    observe(speed, 20, ratio=8.0, steps=3, late_s=0.0)
    assert step_s(speed, 0.95) == pytest.approx(0.002)
    assert late_s(speed, 0.95) == pytest.approx(3 * 7 * 0.002)


def test_a_batch_that_grew_does_not_make_other_batches_slower() -> None:
    speed = model()
    observe(speed, 10, ratio=1.0, joined_by=3)
    assert step_s(speed, 0.5, load=replace(FULL, running=3, free_slots=1)) == pytest.approx(0.004)


def test_who_is_always_joined_by_others_is_planned_for_with_them() -> None:
    speed = model()
    observe(speed, 40, ratio=1.0, joined_by=3)
    assert step_s(speed, 0.95) == pytest.approx(0.004)


def test_long_prompts_do_not_make_short_ones_late() -> None:
    speed = model()
    observe(speed, 60, ratio=1.0, prompt_tokens=50)
    observe(speed, 60, ratio=1.0, prompt_tokens=8000, late_s=2.0)
    assert late_s(speed, 0.95, prompt_tokens=50) == pytest.approx(0.001)
    assert late_s(speed, 0.95, prompt_tokens=8000) == pytest.approx(2.0)


def test_a_slow_down_is_felt_within_a_few_requests() -> None:
    speed = model()
    observe(speed, 100, ratio=1.0)
    observe(speed, 20, ratio=3.0)
    assert step_s(speed, 0.95) >= 0.005
    # What is not yet taken for the pace is planned for all the same: a hundred steps as slow as these.
    assert late_s(speed, 0.95) + 100 * step_s(speed, 0.95) >= 100 * 0.006


def test_one_outlier_is_not_taken_for_the_rule() -> None:
    speed = model()
    observe(speed, 100, ratio=1.0)
    observe(speed, 1, ratio=30.0)
    observe(speed, 20, ratio=1.0)
    assert step_s(speed, 0.95) == pytest.approx(0.002)


def test_a_bad_time_is_forgotten() -> None:
    speed = model()
    observe(speed, 100, ratio=10.0, now_s=0.0)
    assert step_s(speed, 0.95, now_s=1000.0) == pytest.approx(0.002 * COLD_RATIO)


def test_the_workers_own_report_of_its_steps_counts() -> None:
    speed = model()
    for _ in range(30):
        speed.learn_step(FULL, 0.008, 0.0)
    assert step_s(speed, 0.95) == pytest.approx(0.004)


def test_a_report_of_steps_that_were_of_another_batch_is_not_counted() -> None:
    speed = model()
    for _ in range(30):
        speed.learn_step(FULL, 9.0, 0.0)
        speed.learn_step(replace(FULL, running=1), 9.0, 0.0)
        speed.learn_step(IDLE, 9.0, 0.0)
    assert step_s(speed, 0.95) == pytest.approx(0.002 * COLD_RATIO)


def test_a_request_waits_for_prompts_before_it_and_for_a_slot() -> None:
    speed = model()
    assert speed.wait_s(IDLE) == 0.0
    backlog = Load(running=1, waiting=0, prefill_backlog_tokens=5000, free_slots=3)
    assert speed.wait_s(backlog) == pytest.approx(0.5 + 0.002)
    observe(speed, 40, ratio=1.0)  # each takes half a second
    one_slot_s = speed.wait_s(FULL) - 0.004
    assert one_slot_s == pytest.approx(0.5 / 4)
    three_wait = Load(running=4, waiting=3, prefill_backlog_tokens=0, free_slots=0)
    assert speed.wait_s(three_wait) - 0.004 == pytest.approx(4 * 0.5 / 4)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1000), st.integers(0, 4))
def test_more_load_is_never_less_wait(running: int, waiting: int, backlog: int, free: int) -> None:
    speed = model()
    wait_s = speed.wait_s(Load(running, waiting, backlog, free))
    assert wait_s <= speed.wait_s(Load(running + 1, waiting, backlog, free))
    assert wait_s <= speed.wait_s(Load(running, waiting + 1, backlog, free))
    assert wait_s <= speed.wait_s(Load(running, waiting, backlog + 1, free))
    assert wait_s >= speed.wait_s(Load(running, waiting, backlog, free + 1))
