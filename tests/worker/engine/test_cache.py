"""The books of slots and pages balance, and say so when they do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.cache import CacheError, PagePool, SlotPool


@given(st.lists(st.integers(0, 3), max_size=60), st.randoms(use_true_random=False))
@settings(derandomize=True, deadline=None)
def test_pages_are_free_exactly_while_nobody_holds_them(actions: list[int], random) -> None:  # type: ignore[no-untyped-def]
    pool = PagePool(12, page_tokens=4)
    holders: list[list[int]] = []
    for action in actions:
        if action == 0 and pool.free:
            holders.append(pool.take(random.randint(1, pool.free)))
        elif action == 1 and holders:
            shared = random.choice(holders)
            shared = shared[: random.randint(0, len(shared))]
            pool.share(shared)
            holders.append(list(shared))
        elif action == 2 and holders:
            pool.give(holders.pop(random.randrange(len(holders))))
        pool.check(holders)
        assert pool.free == 12 - len({page for pages in holders for page in pages})
    for pages in holders:
        pool.give(pages)
    assert pool.free == 12


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_pages_needed(tokens: int, pages: int) -> None:
    assert PagePool(4, page_tokens=16).needed(tokens) == pages


def test_pages_lie_side_by_side_where_they_can() -> None:
    pool = PagePool(10, page_tokens=16)
    first, second, third = pool.take(3), pool.take(2), pool.take(2)
    assert (first, second, third) == ([0, 1, 2], [3, 4], [5, 6])
    pool.give(second)
    pool.give(first)
    assert pool.take(5) == [0, 1, 2, 3, 4]


def test_a_leaked_page_is_found() -> None:
    pool = PagePool(4, page_tokens=16)
    [kept, leaked] = pool.take(2)
    with pytest.raises(CacheError, match=f"page {leaked} is held 0 times, but counted 1"):
        pool.check([[kept]])


def test_a_page_that_is_used_after_it_was_given_back_is_found() -> None:
    pool = PagePool(4, page_tokens=16)
    pages = pool.take(1)
    pool.give(pages)
    with pytest.raises(CacheError, match="is held 1 times, but counted 0"):
        pool.check([pages])


def test_a_page_that_is_given_back_twice_is_found() -> None:
    pool = PagePool(4, page_tokens=16)
    pages = pool.take(1)
    pool.give(pages)
    pool.give(pages)
    with pytest.raises(CacheError):
        pool.check([])


def test_slots_are_held_once_or_free() -> None:
    pool = SlotPool(range(5, 8))
    first, second = pool.take(), pool.take()
    assert {first, second} < {5, 6, 7}
    assert (pool.count, pool.free) == (3, 1)
    pool.check([first, second])
    with pytest.raises(CacheError):
        pool.check([first])
    pool.give(first)
    with pytest.raises(CacheError):
        pool.check([first, second])
    pool.check([second])
