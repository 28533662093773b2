"""The engine's speed, as it reports it."""

from __future__ import annotations

from worker.engine.meter import Meter


def test_the_step_time_is_the_median_of_steps_that_only_decoded() -> None:
    meter = Meter()
    assert meter.step_s is None
    for n, duration_s in enumerate([0.010, 0.012, 0.500, 0.011]):
        meter.record(n, n + duration_s, sampled=4, decoding=True)
    meter.record(10.0, 13.0, sampled=1, decoding=False)
    assert meter.step_s is not None
    assert abs(meter.step_s - 0.0115) < 1e-9


def test_the_step_time_follows_a_change() -> None:
    meter = Meter()
    for n in range(100):
        meter.record(n, n + 0.010, sampled=1, decoding=True)
    for n in range(100, 133):
        meter.record(n, n + 0.030, sampled=1, decoding=True)
    assert meter.step_s is not None
    assert abs(meter.step_s - 0.030) < 1e-9


def test_tokens_per_second_are_those_of_the_last_second() -> None:
    meter = Meter()
    assert meter.tokens_per_s(5.0) == 0.0
    for tenth in range(20):
        meter.record(tenth / 10, tenth / 10 + 0.05, sampled=8, decoding=True)
    assert meter.tokens_per_s(2.0) == 80.0
    assert meter.tokens_per_s(2.5) == 40.0
    assert meter.tokens_per_s(9.0) == 0.0
