"""Promises against what comes: the planner and its models in a small world of chance."""

import math
import random
from dataclasses import dataclass

import pytest

from controller.planning.decision import Ask, Decision, Mode
from controller.planning.lengths import LengthModel
from controller.planning.planner import plan
from controller.planning.speed import DecodeCurve, Load, Observation, SpeedModel
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

IDLE = Load(running=0, waiting=0, prefill_backlog_tokens=0, free_slots=8)
CURVE = QualityCurve.through([(0, 0.3), (16, 0.3), (64, 0.8), (128, 1.0)])
STEP_S, PREFILL_TOKENS_PER_S, PROMPT = 0.002, 10_000.0, 60
BEGIN = 300
"""Requests after which the models have settled."""


@dataclass
class Tally:
    kept: int = 0
    promised: float = 0.0
    asked: int = 0


def tenant(deadline_s: float, share: float) -> TenantPolicy:
    return TenantPolicy(
        name="any",
        rule="tenants[0]",
        version="0123456789ab",
        objectives=Objectives(share=share, deadline_s=deadline_s),
        mode=ModePolicy.AUTO,
        budget=BudgetRange(0, 1000, Grace(share=0.1), answer_tokens=40),
        quality=Quality(CURVE),
        weight=1.0,
        priority=3,
        otherwise=Otherwise.BEST_EFFORT,
    )


def live(policy: TenantPolicy, seed: int, requests: int = 2000) -> Tally:
    """Runs requests one after the other; what they meet is drawn, each quantity by itself."""
    rng = random.Random(seed)
    speed = SpeedModel(DecodeCurve.through([(1, STEP_S)]), PREFILL_TOKENS_PER_S, slots=8)
    lengths = LengthModel()
    tally = Tally()
    for number in range(requests):
        now_s = 0.1 * number
        expected = speed.estimate(IDLE, PROMPT, now_s)
        decision = plan(Ask(PROMPT, PROMPT), policy, lengths.estimate(now_s), expected, 4096)
        assert isinstance(decision, Decision)
        wait_s = rng.expovariate(1 / 0.003)
        prefill_s = expected.prefill_s(PROMPT) * rng.lognormvariate(0, 0.3)
        step_s = STEP_S * rng.lognormvariate(0, 0.2)
        answer = min(40, 3 + int(rng.expovariate(1 / 6)))
        reasoning = 0
        if decision.mode is Mode.THINK:
            natural = 10 + int(rng.expovariate(1 / 60))
            cut = decision.budget_tokens + decision.grace_tokens
            assert decision.reason_until_s is not None
            by_time = (
                math.ceil((decision.reason_until_s - wait_s - prefill_s) / step_s) + decision.grace_tokens
            )
            reasoning = max(0, min(natural, cut, by_time))
            lengths.learn_reasoning(reasoning, stopped=reasoning == natural)
            reasoning += 1  # the step in which the closing text is fed
        decode_s = (reasoning + answer - 1) * step_s
        latency_s = wait_s + prefill_s + decode_s
        steps = reasoning + answer - 1
        seen = Observation(PROMPT, wait_s + prefill_s, decode_s, steps, 1.0, latency_s - wait_s)
        speed.learn(expected, seen, now_s)
        lengths.learn_answer(answer, now_s)
        if number >= BEGIN:
            tally.asked += 1
            tally.kept += latency_s <= policy.objectives.deadline_s  # type: ignore[operator]  # all have one
            tally.promised += decision.promised_probability
    return tally


@pytest.mark.parametrize(
    ("deadline_s", "share"), [(0.08, 0.9), (0.15, 0.95), (0.3, 0.95), (0.3, 0.5), (1.0, 0.99)]
)
def test_the_share_promised_is_kept(deadline_s: float, share: float) -> None:
    tally = live(tenant(deadline_s, share), seed=5)
    assert tally.kept / tally.asked >= share - 0.01
    assert tally.kept / tally.asked >= tally.promised / tally.asked - 0.02
