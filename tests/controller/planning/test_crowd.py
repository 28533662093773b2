"""Tenants of different deadlines at one worker, all at once."""

import math
from statistics import mean

import pytest

from controller.planning.decision import Mode
from controller.policy import (
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Quality,
    QualityCurve,
    TenantPolicy,
)
from tests.controller.planning.world import Came, Nature, Tenant, run

CURVE = QualityCurve.through(
    [(0, 0.28), (8, 0.23), (16, 0.33), (24, 0.39), (32, 0.53), (48, 0.66), (64, 0.84), (96, 1.0)]
)


def tenant(deadline_s: float, share: float = 0.95) -> Tenant:
    policy = TenantPolicy(
        name="any",
        rule="tenants[0]",
        version="0123456789ab",
        objectives=Objectives(share=share, deadline_s=deadline_s),
        mode=ModePolicy.AUTO,
        budget=BudgetRange(0, 200, Grace(share=0.1), answer_tokens=12),
        quality=Quality(CURVE),
        weight=1.0,
        priority=3,
        otherwise=Otherwise.BEST_EFFORT,
    )
    return Tenant(policy, callers=2)


def kept(came: list[Came]) -> float:
    return mean(request.kept for request in came)


def covered(came: list[Came]) -> float:
    """The share that ended within what was predicted."""
    return mean(request.latency_s <= request.decision.predicted_s for request in came)


def promised(came: list[Came]) -> float:
    return mean(request.decision.promised_probability for request in came)


def thought(came: list[Came]) -> float:
    return mean(request.decision.mode is Mode.THINK for request in came)


@pytest.mark.parametrize("seed", [1, 2])
def test_who_has_room_to_think_in_a_crowd_soon_does(seed: int) -> None:
    patient, hurried, instant = tenant(10.0, 0.9), tenant(0.12), tenant(0.05)
    run([patient, hurried, instant], requests=200, seed=seed)
    assert thought(patient.came) == 1
    assert thought(hurried.came[100:]) > 0.9
    assert kept(hurried.came) >= 0.95
    assert kept(instant.came) >= 0.95


def test_promises_hold_through_a_slow_down_once_it_was_seen() -> None:
    hurried = tenant(0.2)
    run([tenant(10.0, 0.9), hurried], 800, seed=3, nature=Nature(slowness=lambda now_s: 1 + (now_s > 10)))
    assert kept(hurried.came[-300:]) >= promised(hurried.came[-300:]) - 0.02


def test_predictions_come_true_as_often_as_they_say_while_the_worker_drifts() -> None:
    tenants = [tenant(10.0, 0.9), tenant(0.3), tenant(0.05, 0.8)]
    run(tenants, 900, seed=4, nature=Nature(slowness=lambda now_s: 1 + 0.5 * math.sin(now_s / 3) ** 2))
    for each in tenants:
        settled = each.came[300:]
        assert covered(settled) >= each.policy.objectives.share - 0.02
        assert kept(settled) >= promised(settled) - 0.02
    # With this much room nothing but the prediction decides whether it comes true.
    assert covered(tenants[0].came[300:]) == pytest.approx(0.9, abs=0.02)
