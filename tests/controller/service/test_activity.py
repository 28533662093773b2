"""What is shown of a tenant's present."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.planning.decision import Ask, Decision, Mode, Refusal, RefusedFor
from controller.planning.lengths import LengthEstimate
from controller.planning.planner import plan
from controller.planning.speed import SpeedEstimate
from controller.policy import Brownout, parse_policy
from controller.service.activity import PLANS, SQUEEZED, Activity

TENANT = parse_policy("apiVersion: curfew/v1\ntenants:\n  - name: a\n", "policy.yaml", None).tenants["a"]


def decision(budget: int = 100, brownout: Brownout = Brownout.NONE, price: float = 0.0) -> Decision:
    made = plan(Ask(10, 10), TENANT, LengthEstimate(), SpeedEstimate(0.0, 1e-4, 0.01), 32_768)
    assert isinstance(made, Decision)
    mode = Mode.THINK if budget else Mode.NO_THINK
    return replace(made, mode=mode, budget_tokens=budget, brownout=brownout, price=price)


def refusal(reason: RefusedFor) -> Refusal:
    return Refusal(reason, None, 0.95, 1.0, "")


def test_a_steady_rate_is_told_from_the_first_moments_on() -> None:
    activity = Activity(began_s=0.0)
    for tenth in range(20, 3000):
        now_s = tenth / 10
        activity.arrive(now_s)
        if tenth > 100:
            assert activity.rate_per_s(now_s) == pytest.approx(10, rel=0.35)
    assert activity.rate_per_s(300) == pytest.approx(10, rel=0.02)


def test_a_rate_fades_once_nothing_comes() -> None:
    activity = Activity(began_s=0.0)
    for second in range(100):
        activity.arrive(float(second))
    assert activity.rate_per_s(99 + 90) < 0.06
    assert Activity(began_s=0.0).rate_per_s(5.0) == 0


def test_one_burst_at_the_start_is_no_endless_rate() -> None:
    activity = Activity(began_s=0.0)
    for _ in range(10):
        activity.arrive(0.0)
    assert activity.rate_per_s(0.0) == pytest.approx(10, rel=0.05)


def test_modes_and_budgets_are_those_of_the_last_plans() -> None:
    activity = Activity(began_s=0.0)
    assert (activity.think_share, activity.mean_budget_tokens, activity.brownout) == (0.0, 0.0, None)
    for _ in range(PLANS):
        activity.decide(decision(budget=999), waited_s=0.0)
    for budget in [0, 100, 200, 300] * (PLANS // 4):
        activity.decide(decision(budget), waited_s=0.0)
    assert (activity.think_share, activity.mean_budget_tokens) == (0.75, 200.0)


def test_the_furthest_squeeze_of_the_last_requests_is_shown() -> None:
    activity = Activity(began_s=0.0)

    def shown(verdict: Decision | Refusal, waited_s: float = 0.0) -> Brownout | None:
        activity.decide(verdict, waited_s)
        return activity.brownout

    assert shown(decision()) is Brownout.NONE
    assert shown(refusal(RefusedFor.PROMISE)) is Brownout.NONE
    assert shown(decision(brownout=Brownout.LESS, price=1.0)) is Brownout.LESS
    assert shown(decision(0, Brownout.NO_THINK, price=1.0)) is Brownout.NO_THINK
    assert shown(decision(), waited_s=9.0) is Brownout.NO_THINK  # on a pool that has room for all
    assert shown(decision(price=1.0), waited_s=9.0) is Brownout.QUEUE
    assert shown(refusal(RefusedFor.PRICE)) is Brownout.REJECT
    for _ in range(SQUEEZED - 1):
        assert shown(decision()) is Brownout.REJECT
    assert shown(decision()) is Brownout.NONE


def test_a_crowd_is_a_squeeze() -> None:
    activity = Activity(began_s=0.0)
    activity.decide(refusal(RefusedFor.CROWD), 0.0)
    assert activity.brownout is Brownout.REJECT
