"""GCRA, against the bucket of tokens that it stands for."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.state.bucket import MAX_DEBT_US, Bucket, charged, corrected, wait_us

ARRIVALS = st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 12)), max_size=40)


class TokenBucket:
    """Filled all the time, which GCRA never is."""

    def __init__(self, bucket: Bucket) -> None:
        self.unit_us = Fraction(bucket.unit_us)
        self.size = bucket.window_us / self.unit_us
        self.level = self.size
        self.at_us = 0

    def fill(self, now_us: int) -> None:
        self.level = min(self.size, self.level + (now_us - self.at_us) / self.unit_us)
        self.at_us = now_us

    def wait_us(self, units: int) -> Fraction:
        return max(Fraction(0), (min(Fraction(units), self.size) - self.level) * self.unit_us)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(1, 400_000), st.integers(1, 10), ARRIVALS)
def test_gcra_lets_in_what_a_bucket_of_tokens_does(
    unit_us: int, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    bucket = Bucket(unit_us, unit_us * burst)
    oracle = TokenBucket(bucket)
    tat_us = now_us = 0
    for gap_us, units in arrivals:
        now_us += gap_us
        oracle.fill(now_us)
        cost_us = bucket.cost_us(units)
        wait = wait_us(bucket, tat_us, cost_us, now_us)
        assert wait == oracle.wait_us(units)
        if wait == 0:
            tat_us = charged(bucket, tat_us, cost_us, now_us)
            oracle.level -= units


@settings(derandomize=True, deadline=None)
@given(st.floats(0.01, 5000), st.integers(1, 50), st.lists(st.integers(0, 200_000), max_size=80))
def test_no_stretch_of_time_gets_more_than_its_rate_and_one_burst(
    per_s: float, burst: int, gaps_us: list[int]
) -> None:
    bucket = Bucket.of(per_s, burst)
    tat_us = now_us = 0
    let_in: list[int] = []
    for gap_us in gaps_us:
        now_us += gap_us
        if wait_us(bucket, tat_us, bucket.cost_us(1), now_us) == 0:
            tat_us = charged(bucket, tat_us, bucket.cost_us(1), now_us)
            let_in.append(now_us)
    for first, began_us in enumerate(let_in):
        for number, ended_us in enumerate(let_in[first:], start=1):
            assert number <= burst + per_s * (ended_us - began_us) / 1e6 + 1e-3


@settings(derandomize=True, deadline=None)
@given(st.floats(0.1, 1000), st.integers(1, 20), st.integers(1, 30), st.integers(0, 10**9))
def test_who_waits_as_long_as_told_is_let_in_and_not_a_microsecond_before(
    per_s: float, burst: int, units: int, tat_ahead_us: int
) -> None:
    bucket, now_us = Bucket.of(per_s, burst), 10**15
    tat_us, cost_us = now_us + tat_ahead_us, bucket.cost_us(units)
    wait = wait_us(bucket, tat_us, cost_us, now_us)
    assert wait_us(bucket, tat_us, cost_us, now_us + wait) == 0
    assert wait == 0 or wait_us(bucket, tat_us, cost_us, now_us + wait - 1) == 1


def test_shares_together_have_the_whole_rate_and_the_whole_burst() -> None:
    whole = Bucket.of(per_s=12, burst=9)
    part = whole.share(3)
    assert 3 / part.unit_us == 1 / whole.unit_us
    assert part.window_us / part.unit_us == whole.window_us / whole.unit_us / 3


def test_even_the_smallest_share_lets_one_in_at_once() -> None:
    part = Bucket.of(per_s=1, burst=1).share(4)
    assert wait_us(part, 0, part.cost_us(1), 0) == 0
    assert wait_us(part, part.cost_us(1), part.cost_us(1), 0) == 4_000_000


def test_what_is_given_back_may_be_used_again() -> None:
    bucket = Bucket.of(per_s=1000, burst=100)
    tat_us = charged(bucket, 0, bucket.cost_us(100), 0)
    assert wait_us(bucket, tat_us, bucket.cost_us(40), 0) == 40_000
    tat_us = corrected(tat_us, bucket.cost_us(-40), 0)
    assert wait_us(bucket, tat_us, bucket.cost_us(40), 0) == 0


def test_a_debt_is_forgotten_after_an_hour() -> None:
    bucket = Bucket.of(per_s=1, burst=10)
    tat_us = corrected(0, 10 * MAX_DEBT_US, 0)
    assert wait_us(bucket, tat_us, bucket.cost_us(1), 0) == MAX_DEBT_US + bucket.cost_us(1)


def test_a_slow_limit_with_a_large_burst_is_kept_over_more_than_an_hour() -> None:
    bucket, tat_us, let_in = Bucket.of(per_s=1 / 3600, burst=5), 0, 0
    while wait_us(bucket, tat_us, bucket.cost_us(1), 0) == 0:
        tat_us = charged(bucket, tat_us, bucket.cost_us(1), 0)
        let_in += 1
    assert let_in == 5
