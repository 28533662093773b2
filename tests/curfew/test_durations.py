"""Durations on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curfew.rpc.durations import duration, seconds


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_duration_of_whole_nanoseconds_comes_back(nanoseconds: int) -> None:
    message = duration(nanoseconds / 1e9)
    assert message.ToNanoseconds() == nanoseconds
    assert seconds(message) == pytest.approx(nanoseconds / 1e9, rel=1e-15)


def test_both_parts_of_a_negative_duration_are_negative() -> None:
    message = duration(-1.25)
    assert (message.seconds, message.nanos) == (-1, -250_000_000)
    assert seconds(message) == -1.25
