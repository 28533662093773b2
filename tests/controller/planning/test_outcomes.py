"""Which outcomes may be reported."""

import pytest

from controller.planning.outcomes import (
    CAPACITY,
    LEAST_SHARE,
    MAX_AGE_S,
    ConflictError,
    Ended,
    Outcomes,
    Trial,
    left_tokens,
)
from controller.planning.stops import StopCurve

TRIAL = Trial("tenants[0]", Ended.STOPPED, 40.0)


def remembered(*requests: tuple[str, str]) -> Outcomes:
    outcomes = Outcomes()
    for tenant, request_id in requests:
        outcomes.remember(tenant, request_id, TRIAL, 0.0)
    return outcomes


def test_an_answer_is_reported_once() -> None:
    outcomes = remembered(("a", "1"))
    assert outcomes.report("a", "1", 0.5, 1.0) is TRIAL


def test_the_same_report_again_is_no_further_report() -> None:
    outcomes = remembered(("a", "1"))
    outcomes.report("a", "1", 0.5, 1.0)
    assert outcomes.report("a", "1", 0.5, 2.0) is None


def test_another_score_for_the_same_answer_is_refused() -> None:
    outcomes = remembered(("a", "1"))
    outcomes.report("a", "1", 0.0, 1.0)
    with pytest.raises(ConflictError):
        outcomes.report("a", "1", 1.0, 2.0)


def test_a_tenant_does_not_know_another_s_requests() -> None:
    outcomes = remembered(("a", "1"), ("b", "2"))
    for tenant, request_id in (("a", "2"), ("c", "1"), ("a", "3")):
        with pytest.raises(LookupError):
            outcomes.report(tenant, request_id, 1.0, 1.0)
    assert outcomes.report("a", "1", 1.0, 1.0) is TRIAL


def test_an_answer_of_long_ago_is_forgotten() -> None:
    outcomes = remembered(("a", "1"))
    with pytest.raises(LookupError):
        outcomes.report("a", "1", 1.0, MAX_AGE_S)


def test_a_busy_tenant_displaces_its_own_oldest_answers_and_no_other_s() -> None:
    tenants = CAPACITY // LEAST_SHARE
    outcomes = remembered(*((f"quiet-{index}", "1") for index in range(tenants)))
    for request in range(LEAST_SHARE + 1):
        outcomes.remember("busy", str(request), TRIAL, 1.0)
    with pytest.raises(LookupError):
        outcomes.report("busy", "0", 1.0, 2.0)
    assert outcomes.report("busy", "1", 1.0, 2.0) is TRIAL
    for index in range(tenants):
        assert outcomes.report(f"quiet-{index}", "1", 1.0, 2.0) is TRIAL


def test_what_is_left_of_cut_reasoning_is_what_its_class_would_have_gone_on_for() -> None:
    stops = StopCurve.estimate([(length, True) for length in range(1, 101)])
    whole = Trial.of("tenants[0]", Ended.WITHOUT, 0, stops).left_tokens
    half = Trial.of("tenants[0]", Ended.CUT, 50, stops).left_tokens
    assert whole is not None
    assert half is not None
    assert abs(whole - 50) < 2
    assert abs(half - 25) < 2
    assert Trial.of("tenants[0]", Ended.STOPPED, 50, stops).left_tokens == whole


def test_what_is_left_is_not_known_beyond_the_longest_seen() -> None:
    assert left_tokens(StopCurve(), 0) is None
    assert left_tokens(StopCurve.estimate([(9, True)]), 9) is None
