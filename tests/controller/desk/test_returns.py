"""When those that are refused come again."""

import itertools

import pytest

from controller.desk.returns import JITTER, MOST_RETRY_S, PART_FOR_RETURNS, SOONEST_S, Paced, Returns
from controller.planning.price import CLEAR_WAITING_S


def storm(refused: int) -> list[float]:
    """When each of so many that are refused at once comes again: of one slot-second, on ten slots."""
    returns = Returns()
    return [returns.next_s("a", 1.0, 10.0, 0.0, 100.0) for _ in range(refused)]


def test_those_refused_at_once_return_no_faster_than_their_part_of_the_pool_serves_them() -> None:
    times_s = storm(100)
    assert times_s[0] == pytest.approx(CLEAR_WAITING_S)
    apart = [after - before for before, after in itertools.pairwise(times_s)]
    assert apart == pytest.approx([1 / (10.0 * PART_FOR_RETURNS)] * 99)


def test_the_window_grows_with_the_backlog_up_to_a_limit() -> None:
    assert max(storm(200)) - CLEAR_WAITING_S == pytest.approx(199 / 5)
    assert max(storm(10_000)) == MOST_RETRY_S


def test_the_storm_of_one_tenant_keeps_no_other_away() -> None:
    returns = Returns()
    for _ in range(100):
        returns.next_s("a", 1.0, 10.0, 0.0, 0.0)
    assert returns.next_s("b", 1.0, 10.0, 0.0, 0.0) == CLEAR_WAITING_S


def test_when_the_storm_is_over_times_are_short_again_and_they_differ() -> None:
    returns = Returns()
    for _ in range(100):
        returns.next_s("a", 1.0, 10.0, 0.0, 0.0)
    later = [returns.next_s("a", 0.0, 10.0, jitter, 60.0) for jitter in (-1.0, 1.0)]
    assert later == pytest.approx([CLEAR_WAITING_S * (1 - JITTER), CLEAR_WAITING_S * (1 + JITTER)])


def test_those_who_find_no_worker_come_again_at_a_bearable_pace_however_many_they_are() -> None:
    paced = Paced(per_s=200.0)
    times_s = [paced.next_s(0.0, 10.0) for _ in range(20_000)]
    assert times_s[0] == SOONEST_S
    apart = [after - before for before, after in itertools.pairwise(times_s[:10_000])]
    assert apart == pytest.approx([1 / 200.0] * 9_999)
    assert max(times_s) == pytest.approx(MOST_RETRY_S)
    assert paced.next_s(0.0, 100.0) == SOONEST_S
