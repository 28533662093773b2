"""What a tenant is promised decides how its questions are answered."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from curfew.v1 import generation_pb2 as pb
from tests.system.conftest import LONG_ANSWER, LONG_SUM, Answered, System, greedy

pytestmark = pytest.mark.asyncio(loop_scope="session")


def assert_exact(answered: Answered) -> None:
    """Plan first, completion last, counts as streamed, nothing beyond the budget, never an empty answer."""
    assert answered.events[0].HasField("plan")
    assert answered.events[-1].HasField("completion")
    usage, budget = answered.completion.usage, answered.plan.budget
    reasoning = answered.tokens(pb.PHASE_REASONING)
    assert len(reasoning) == usage.reasoning_tokens
    assert len(answered.tokens(pb.PHASE_FORCED)) == usage.forced_tokens
    assert len(answered.tokens(pb.PHASE_ANSWER)) == usage.answer_tokens
    assert usage.output_tokens == usage.reasoning_tokens + usage.forced_tokens + usage.answer_tokens
    assert len(reasoning) <= (budget.reasoning_tokens + budget.grace_tokens if budget.reasoning_tokens else 0)
    assert answered.text(pb.PHASE_ANSWER).strip()


async def test_ten_seconds_are_enough_to_think_freely(system: System) -> None:
    answered = await system.ask("patient", LONG_SUM)
    assert_exact(answered)
    assert answered.completion.reasoning_end == pb.REASONING_END_NATURAL
    assert answered.text(pb.PHASE_ANSWER) == LONG_ANSWER
    assert answered.text(pb.PHASE_REASONING).count("\n") == 11
    assert answered.completion.usage.forced_tokens == 0


async def test_a_tight_deadline_cuts_the_thinking_and_an_answer_is_forced(system: System) -> None:
    answered = await system.ask("hurried", LONG_SUM)
    assert_exact(answered)
    assert answered.plan.mode == pb.MODE_THINK
    assert answered.completion.reasoning_end in (pb.REASONING_END_BUDGET, pb.REASONING_END_DEADLINE)
    assert answered.completion.usage.forced_tokens > 0
    assert "think>" not in answered.text(pb.PHASE_REASONING) + answered.text(pb.PHASE_ANSWER)


async def test_the_tightest_deadline_leaves_no_time_to_think(system: System) -> None:
    answered = await system.ask("instant", LONG_SUM)
    assert_exact(answered)
    assert answered.plan.mode == pb.MODE_NO_THINK
    assert answered.completion.reasoning_end == pb.REASONING_END_NONE
    assert answered.completion.usage.reasoning_tokens == 0


async def test_a_promise_that_cannot_be_kept_is_refused_where_the_policy_says_so(system: System) -> None:
    # Until enough was seen to be sure, the controller tries; then it refuses, with its reason.
    for _ in range(200):
        try:
            await system.ask("strict", "What is 1 + 2?")
        except grpc.aio.AioRpcError as error:
            refused = error
            break
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "1 ms" in str(refused.details())


async def test_objectives_are_reported_with_what_came_of_them(system: System) -> None:
    answered = await system.ask("patient", "What is 12 + 37?")
    (deadline,) = answered.completion.objectives
    assert deadline.promised.seconds == 10
    assert deadline.kept
    assert deadline.actual.nanos == answered.completion.latency.nanos


async def test_a_caller_may_wish_for_less_but_not_for_more(system: System) -> None:
    async with system.client("patient") as client:
        request = greedy(LONG_SUM)
        request.wishes.max_reasoning_tokens = 20
        answered = Answered([event async for event in client.generate(request)])
        assert answered.plan.budget.reasoning_tokens <= 20
        assert_exact(answered)
        request.wishes.max_reasoning_tokens = 100_000
        answered = Answered([event async for event in client.generate(request)])
        assert answered.plan.budget.reasoning_tokens <= 200


async def test_the_same_question_gives_the_same_tokens_in_a_crowd_as_alone(system: System) -> None:
    questions = [f"What is {n} + {2 * n} + 17 + {n + 40}?" for n in range(20)]
    alone = [await system.ask("patient", question) for question in questions]
    crowd = await asyncio.gather(*(system.ask("patient", question) for question in questions))
    for one, among in zip(alone, crowd, strict=True):
        assert_exact(among)
        assert among.tokens(pb.PHASE_REASONING) == one.tokens(pb.PHASE_REASONING)
        assert among.tokens(pb.PHASE_ANSWER) == one.tokens(pb.PHASE_ANSWER)
