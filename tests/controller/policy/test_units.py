"""Quantities as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policy.units import (
    Rate,
    format_duration,
    format_rate,
    format_share,
    parse_count,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_share,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("800ms", 0.8), ("10s", 10), ("1.5m", 90), ("2h", 7200), ("250us", 0.00025), ("3 s", 3)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "count"), [(0, 0), (2000, 2000), ("2k", 2000), ("1.1k", 1100), ("1M", 1_000_000), (3.0, 3)]
)
def test_a_count_may_be_in_thousands(value: object, count: int) -> None:
    assert parse_count(value) == count


@pytest.mark.parametrize(("value", "share"), [("p95", 0.95), ("p99.9", 0.999), (0.5, 0.5)])
def test_a_share_is_a_quantile_or_a_number(value: object, share: float) -> None:
    assert parse_share(value) == share


@pytest.mark.parametrize(
    ("value", "share"), [("10%", 0.1), ("0 %", 0.0), ("100%", 1.0), (10, None), ("x", None)]
)
def test_only_what_has_a_percent_sign_is_a_percentage(value: object, share: float | None) -> None:
    assert parse_percent(value) == share


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0021, "2.1 ms"), (0.012, "12 ms"), (0.8, "800 ms"), (10, "10 s"), (2.52, "2.52 s")],
)
def test_durations_are_shown_to_two_or_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 999))
def test_a_share_that_is_shown_is_read_back(thousandths: int) -> None:
    assert parse_share(format_share(thousandths / 1000)) == thousandths / 1000


@pytest.mark.parametrize(
    ("text", "rate", "per_s"),
    [("50/s", Rate(50, "s"), 50), ("600/m", Rate(600, "m"), 10), ("1.1k / h", Rate(1100, "h"), 11 / 36)],
)
def test_a_rate_is_a_count_in_a_time(text: str, rate: Rate, per_s: float) -> None:
    assert parse_rate(text) == rate
    assert rate.per_s == pytest.approx(per_s)


@pytest.mark.parametrize("text", ["50/s", "600/m", "2M/h", "1.5k/s", "0.5/m", "999999/h"])
def test_a_rate_that_is_shown_is_read_back(text: str) -> None:
    assert parse_rate(format_rate(parse_rate(text))) == parse_rate(text)
