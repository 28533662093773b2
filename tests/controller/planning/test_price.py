"""What a slot-second costs, as demand comes and goes."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.options import Increment
from controller.planning.price import BUCKET_RATIO, MEMORY_S, TARGET_USE, Demand, Market

CAPACITY = 10.0
MENU = (Increment(8.0, 0.1), Increment(2.0, 0.5), Increment(0.5, 1.0))
"""An answer at once is worth most for its 0.1 slot-seconds; much thinking, least."""


def drive(
    market: Market, rates: dict[str, float], from_s: float, to_s: float, menu: tuple[Increment, ...] = MENU
) -> list[float]:
    """Has tenants of equal weight arrive evenly at these rates; returns the pool's price every 100 ms."""
    arrivals = sorted(
        (from_s + (number + (index + 0.5) / len(rates)) / rate, tenant)
        for index, (tenant, rate) in enumerate(rates.items())
        for number in range(int((to_s - from_s) * rate))
    )
    prices, tick_s = [], from_s
    for when_s, tenant in arrivals:
        while tick_s <= when_s:
            prices.append(market.pool_price(CAPACITY, tick_s))
            tick_s += 0.1
        market.arrive(tenant, 1.0, menu, CAPACITY, when_s)
    return prices


def tenants(count: int, rate: float) -> dict[str, float]:
    return {f"t{number}": rate / count for number in range(count)}


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0.01, 5)), min_size=1, max_size=30),
    st.floats(0.01, 40),
)
def test_at_the_clearing_price_no_more_is_asked_for_than_there_is(
    asked: list[tuple[float, float]], supply: float
) -> None:
    demand = Demand()
    for density, slot_s in asked:
        demand.add(density, slot_s)
    margin = demand.margin(supply)
    price = 0.0 if margin is None else margin.price
    surely_above = sum(slot_s for density, slot_s in asked if density > price * BUCKET_RATIO)
    surely_below = sum(slot_s for density, slot_s in asked if density * BUCKET_RATIO >= price)
    assert surely_above <= supply + 1e-9
    assert price == 0 or surely_below >= supply - 1e-9


def test_an_idle_pool_has_price_zero() -> None:
    market = Market()
    assert market.pool_price(CAPACITY, 0.0) == 0.0
    prices = drive(market, tenants(4, 2.0), 0.0, 20.0)
    assert set(prices) == {0.0}


def test_the_price_takes_away_the_least_valuable_first() -> None:
    # 1.6 slot-seconds each: 10 a second ask for 16 of 9.2, and do with 0.6 each, or a bit more.
    by_rate = {}
    for rate in (10.0, 30.0, 150.0):
        market = Market()
        by_rate[rate] = drive(market, tenants(1, rate), 0.0, 20.0)[-1]
    assert 0.5 / BUCKET_RATIO <= by_rate[10.0] <= 0.5 * BUCKET_RATIO
    assert 2.0 / BUCKET_RATIO <= by_rate[30.0] <= 2.0 * BUCKET_RATIO
    assert 8.0 / BUCKET_RATIO <= by_rate[150.0] <= 8.0 * BUCKET_RATIO


def test_a_step_in_load_moves_the_price_within_its_memory_and_it_stays_there() -> None:
    market = Market()
    drive(market, tenants(1, 3.0), 0.0, 20.0)
    prices = drive(market, tenants(1, 30.0), 20.0, 40.0)
    after = prices[int(10 * 2 * MEMORY_S) :]
    assert max(after) / min(after) < BUCKET_RATIO
    gone = drive(market, tenants(1, 3.0), 40.0, 60.0)
    assert set(gone[int(10 * 3 * MEMORY_S) :]) == {0.0}


def test_oscillating_load_is_followed_without_overshoot() -> None:
    market = Market()
    steady = Market()
    drive(steady, tenants(1, 40.0), 0.0, 20.0)
    most = steady.pool_price(CAPACITY, 20.0)
    for period in range(10):
        prices = drive(market, tenants(1, 40.0 if period % 2 else 5.0), 3.0 * period, 3.0 * period + 3.0)
        assert max(prices) <= most * BUCKET_RATIO


def test_whoever_stays_within_its_share_pays_nothing_for_anothers_burst() -> None:
    market = Market()
    drive(market, {"modest": 2.0, "greedy": 3.0}, 0.0, 20.0)
    drive(market, {"modest": 2.0, "greedy": 60.0}, 20.0, 40.0)
    assert market.price("modest", CAPACITY, 40.0) == 0.0
    assert market.price("greedy", CAPACITY, 40.0) > 1.0


def test_shares_go_by_weight() -> None:
    market = Market()
    rng = random.Random(7)
    now_s = 0.0
    while now_s < 20.0:
        now_s += rng.expovariate(20.0)
        market.arrive("light", 1.0, MENU, CAPACITY, now_s)
        market.arrive("heavy", 3.0, MENU, CAPACITY, now_s)
    assert market.share("heavy") == pytest.approx(0.75)
    assert market.price("heavy", CAPACITY, now_s) < market.price("light", CAPACITY, now_s)


def test_those_who_wait_are_demand_too() -> None:
    market = Market()
    drive(market, tenants(1, 3.0), 0.0, 20.0)
    assert market.pool_price(CAPACITY, 20.0) == 0.0
    for _ in range(40):
        market.wait(MENU)
    assert market.pool_price(CAPACITY, 20.0) > 0.0
    for _ in range(40):
        market.waited(MENU)
    assert market.pool_price(CAPACITY, 20.0) == 0.0


def test_what_no_price_takes_away_leaves_less_for_the_others() -> None:
    fixed = (Increment(math.inf, 0.5),)
    market, other = Market(), Market()
    drive(market, tenants(1, 12.0), 0.0, 20.0)
    drive(other, tenants(1, 12.0), 0.0, 10.0)
    for step in range(200):
        now_s = 10.0 + 0.05 * step
        other.arrive("fixed", 1.0, fixed, CAPACITY, now_s)
        if step % 5 < 3:
            other.arrive("t0", 1.0, MENU, CAPACITY, now_s)
    assert other.pool_price(CAPACITY, 20.0) > market.pool_price(CAPACITY, 20.0)


def test_the_memory_is_kept_in_range_however_long_it_runs() -> None:
    market = Market()
    for step in range(3000):
        market.arrive("t", 1.0, MENU, CAPACITY, 1.0 * step)
    assert market.load(CAPACITY, 2999.0) == pytest.approx(1.6 / (CAPACITY * 1.0), rel=0.25)
    assert TARGET_USE < 1


def test_a_pool_that_stands_idle_at_a_price_gives_more_away_and_one_that_is_crowded_less() -> None:
    prices = {}
    for occupied in (0.2, TARGET_USE, 1.5):
        market = Market()
        for second in range(10):
            drive(market, tenants(1, 12.0), 1.0 * second, second + 1.0)
            for tick in range(10):
                market.observe(occupied * CAPACITY, 0, CAPACITY, second + 0.9 + tick / 100)
        prices[occupied] = market.pool_price(CAPACITY, 10.0)
    assert prices[0.2] < prices[TARGET_USE] < prices[1.5]


def test_idle_slots_that_nobody_was_kept_from_show_nothing() -> None:
    market, other = Market(), Market()
    for second in range(20):
        for one in (market, other):
            drive(one, tenants(1, 2.0), 1.0 * second, second + 1.0)
        market.observe(0.1 * CAPACITY, 0, CAPACITY, second + 0.95)
    for one in (market, other):
        drive(one, tenants(1, 30.0), 20.0, 26.0)
    assert market.pool_price(CAPACITY, 26.0) == other.pool_price(CAPACITY, 26.0)


def test_those_that_are_turned_away_make_the_pool_dearer() -> None:
    market, other = Market(), Market()
    for second in range(10):
        for one in (market, other):
            drive(one, tenants(1, 12.0), 1.0 * second, second + 1.0)
        for _ in range(20):
            market.turn_away(MENU)
        for one in (market, other):
            one.observe(TARGET_USE * CAPACITY, 0, CAPACITY, second + 0.95)
    assert market.pool_price(CAPACITY, 10.0) > other.pool_price(CAPACITY, 10.0)
