"""Workers that do worse than the others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fleet.outliers import FAILURES, FIRST_S, FORGIVEN_S, LONGEST_S, MOST_SHARE, SLOW, Outliers
from controller.fleet.worker import Worker
from tests.controller.fleet.test_ranking import fleet


def watched(count: int) -> tuple[Outliers, list[Worker], list[Worker]]:
    """A fleet, and those of it that were told to have changed."""
    changed: list[Worker] = []
    outliers, workers = Outliers(changed.append), fleet(count)
    for worker in workers:
        outliers.add(worker)
    return outliers, workers, changed


def fail(outliers: Outliers, worker: Worker, now_s: float, times: int = FAILURES) -> None:
    for _ in range(times):
        outliers.failed(worker, now_s)


def test_a_worker_that_fails_in_a_row_is_ejected_and_one_that_answers_between_is_not() -> None:
    outliers, (bad, good), changed = watched(2)
    fail(outliers, good, 0.0, FAILURES - 1)
    outliers.answered(good)
    fail(outliers, good, 0.0, FAILURES - 1)
    assert good.available
    fail(outliers, bad, 0.0)
    assert not bad.available
    assert changed == [bad]


def test_an_ejected_worker_comes_back_after_a_time_that_grows_and_is_filled_slowly() -> None:
    outliers, (bad, _), _ = watched(2)
    now_s = 100.0
    for ejection in range(1, 4):
        fail(outliers, bad, now_s)
        outliers.review(now_s + FIRST_S * ejection - 0.1)
        assert not bad.available
        now_s += FIRST_S * ejection
        outliers.review(now_s)
        assert bad.available
        assert bad.came_s == now_s
    for _ in range(3):
        now_s += FORGIVEN_S
        outliers.review(now_s)
    fail(outliers, bad, now_s)
    assert bad.ejected_until_s == now_s + FIRST_S


def test_no_ejection_is_longer_than_the_longest() -> None:
    outliers, (bad, _), _ = watched(2)
    now_s = 0.0
    for _ in range(50):
        fail(outliers, bad, now_s)
        assert bad.ejected_until_s is not None
        assert bad.ejected_until_s - now_s <= LONGEST_S
        now_s = bad.ejected_until_s
        outliers.review(now_s)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 12), st.data())
def test_most_of_the_fleet_is_never_ejected_and_never_the_last(count: int, data: st.DataObject) -> None:
    outliers, workers, _ = watched(count)
    for _ in range(data.draw(st.integers(0, 40))):
        fail(outliers, data.draw(st.sampled_from(workers)), 0.0)
    ejected = sum(not worker.available for worker in workers)
    assert ejected <= max(1, int(MOST_SHARE * count))
    assert ejected < count


def at_pace(worker: Worker, pace: float, *, measured_step_s: float = 0.001) -> None:
    """Its steps take so many times what it measured."""
    worker.pace, worker.lone_step_s = pace, pace * measured_step_s


def test_a_worker_whose_steps_have_become_far_slower_than_the_others_is_ejected() -> None:
    outliers, workers, _ = watched(4)
    for worker in workers:
        at_pace(worker, 1.2)
    at_pace(workers[0], 1.2 * SLOW)
    outliers.review(0.0)
    assert all(worker.available for worker in workers)
    at_pace(workers[0], 1.3 * SLOW)
    outliers.review(1.0)
    assert [worker.available for worker in workers] == [False, True, True, True]


def test_a_worker_that_is_slower_by_its_kind_or_measured_in_a_quiet_moment_is_no_outlier() -> None:
    outliers, workers, _ = watched(4)
    for worker in workers:
        at_pace(worker, 1.0)
    at_pace(workers[0], 1.0, measured_step_s=0.01)
    outliers.review(0.0)
    at_pace(workers[0], 10.0, measured_step_s=0.0001)
    outliers.review(1.0)
    assert all(worker.available for worker in workers)


def test_where_all_are_slow_none_is_an_outlier() -> None:
    outliers, workers, _ = watched(4)
    for worker in workers:
        at_pace(worker, 10.0)
    outliers.review(0.0)
    assert all(worker.available for worker in workers)
