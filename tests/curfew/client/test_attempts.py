"""When a request is tried again, where, and after how long."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curfew.client.attempts import Addresses, Attempts, Retry
from curfew.client.errors import Code, CurfewError, Details, InvalidRequest, Overloaded, Unavailable
from curfew.client.values import Options


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def unavailable(after_s: float | None = None) -> CurfewError:
    return CurfewError.of(Code.UNAVAILABLE, "no", Details(retry_after_s=after_s))


def full(after_s: float | None) -> CurfewError:
    return CurfewError.of(Code.RESOURCE_EXHAUSTED, "no", Details(retry_after_s=after_s))


def attempts(retry: Retry, options: Options, addresses: int, clock: Clock, seed: int = 1) -> Attempts:
    return Attempts(retry, options, Addresses(addresses), clock, Random(seed))


@given(
    st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.floats(0, 20))), max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.one_of(st.none(), st.floats(0.01, 60)),
    st.integers(),
)
def test_calls_are_bounded_and_never_too_early_nor_beyond_the_deadline(
    errors: list[tuple[bool, float | None]],
    rounds: int,
    addresses: int,
    deadline_s: float | None,
    seed: int,
) -> None:
    clock = Clock()
    retry = Retry(attempts=rounds)
    options = Options() if deadline_s is None else Options(deadline_s=deadline_s)
    tried = attempts(retry, options, addresses, clock, seed)
    asked = [tried.begin().address]
    for away, after_s in errors:
        error = unavailable(after_s) if away else full(after_s)
        try:
            wait_s = tried.after(error)
        except CurfewError:
            break
        clock.now_s += wait_s
        attempt = tried.begin()
        asked.append(attempt.address)
        if not away:
            assert after_s is not None
            assert after_s <= wait_s <= max(1.2 * after_s, retry.max_backoff_s)
            assert asked[-1] == asked[-2]
        elif addresses > 1:
            assert asked[-1] != asked[-2]
        if deadline_s is not None:
            assert attempt.deadline_s is not None
            assert attempt.deadline_s > 0
    assert len(asked) <= rounds * addresses


def test_another_address_is_asked_without_waiting_and_a_round_is_waited_for() -> None:
    tried = attempts(Retry(attempts=2), Options(), 2, Clock())
    assert tried.after(unavailable(1.0)) == 0.0
    assert tried.begin().address == 1
    assert 1.0 <= tried.after(unavailable(1.0)) <= 1.2
    assert tried.begin().address == 0
    assert tried.after(unavailable()) == 0.0
    with pytest.raises(Unavailable):
        tried.after(unavailable())


def test_backoff_doubles_to_its_limit() -> None:
    tried = attempts(Retry(attempts=9, first_backoff_s=0.1, max_backoff_s=0.5), Options(), 1, Clock())
    waits_s = [tried.after(unavailable()) for _ in range(5)]
    for wait_s, most_s in zip(waits_s, (0.1, 0.2, 0.4, 0.5, 0.5), strict=True):
        assert most_s / 2 <= wait_s <= most_s


def test_what_a_retry_does_not_help_is_raised() -> None:
    for error in (CurfewError.of(Code.INVALID_ARGUMENT, "no"), full(None), full(11.0)):
        with pytest.raises((InvalidRequest, Overloaded)):
            attempts(Retry(), Options(), 2, Clock()).after(error)


def test_the_deadline_runs_from_the_first_attempt() -> None:
    clock = Clock()
    tried = attempts(Retry(), Options(deadline_s=4.0, timeout_s=9.0), 1, clock)
    first = tried.begin()
    assert (first.deadline_s, first.timeout_s) == (4.0, 9.0)
    clock.now_s += 3.0
    later = tried.begin()
    assert (later.deadline_s, later.timeout_s) == (1.0, 6.0)
    with pytest.raises(Overloaded):
        tried.after(full(1.0))
