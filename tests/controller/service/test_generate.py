"""Requests from caller to worker and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details

from controller import wire
from curfew.rpc.errors import RpcError, retry_after
from curfew.v1 import admin_pb2, generation_pb2, reasoning_pb2, worker_pb2
from tests.controller.fake_worker import AdjustContext, FakeWorker, GenerateContext, Response, Script
from tests.controller.service.harness import POLICY, Door, ask, controller, detail, key

REASONING, FORCED, ANSWER = (
    generation_pb2.PHASE_REASONING,
    generation_pb2.PHASE_FORCED,
    generation_pb2.PHASE_ANSWER,
)


async def standing(door: Door, tenant: str) -> admin_pb2.TenantStanding:
    response = await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())
    return next(standing for standing in response.standings if standing.tenant == tenant)


async def test_the_plan_comes_first_and_the_accounting_last() -> None:
    async with FakeWorker(Script(reasoning=20)) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst")
    assert answer.error is None
    kinds = [event.WhichOneof("event") for event in answer.events]
    assert kinds[0] == "plan"
    assert kinds[-1] == "completion"
    assert set(kinds[1:-1]) == {"delta"}
    plan, done = answer.plan, answer.completion
    assert plan.mode == generation_pb2.MODE_THINK
    assert (plan.tenant, plan.rule, plan.worker) == ("analyst", "tenants[0]", worker.address)
    assert plan.budget.reasoning_tokens == 96
    assert plan.target_share == 0.9
    assert wire.seconds(plan.deadline) == 10
    assert plan.why.startswith("10 s (first token 5 s, first answer token 9 s, per token 1 s) at p90: wait ")
    assert worker.requests[0].request_id == plan.request_id
    assert answer.text(REASONING) == "".join(f"r{number} " for number in range(20))
    assert answer.text(ANSWER) == "it is 42"
    assert answer.token_ids(ANSWER) == [200, 201, 202]
    assert done.reasoning_end == generation_pb2.REASONING_END_NATURAL
    assert done.usage.output_tokens == 23


RULES = """\
apiVersion: curfew/v1
tenants:
  - name: analyst
    key: {env: ANALYST}
    objectives: {deadline: 10s}
    budget: {max: 50}
    rules:
      - match: {task: [triage, routing], tier: gold}
        mode: no_think
        priority: 0
      - match: {task: triage}
        budget: {max: 9}
"""


@pytest.mark.parametrize(
    ("labels", "rule", "budget", "priority"),
    [
        ({}, "tenants[0]", 50, 3),
        ({"task": "other"}, "tenants[0]", 50, 3),
        ({"task": "routing", "tier": "gold", "more": "x"}, "tenants[0].rules[0]", 0, 0),
        ({"task": "triage", "tier": "gold"}, "tenants[0].rules[0]", 0, 0),
        ({"task": "triage", "tier": "silver"}, "tenants[0].rules[1]", 9, 3),
    ],
)
async def test_the_first_rule_that_matches_the_labels_decides(
    labels: dict[str, str], rule: str, budget: int, priority: int
) -> None:
    async with FakeWorker() as worker, controller([worker.address], RULES) as door:
        answer = await door.generate("analyst", ask(labels=labels))
        planned = await door.reasoning.Plan(
            reasoning_pb2.PlanRequest(request=ask(labels=labels)), metadata=key("analyst")
        )
    assert answer.error is None
    for plan in (answer.plan, planned.plan):
        assert (plan.tenant, plan.rule, plan.budget.reasoning_tokens) == ("analyst", rule, budget)
    assert worker.requests[0].priority == priority
    assert worker.requests[0].budget.reasoning_tokens == budget


async def test_every_objective_is_accounted_for() -> None:
    async with FakeWorker(Script(reasoning=20)) as worker, controller([worker.address]) as door:
        done = (await door.generate("analyst")).completion
    results = {result.objective: result for result in done.objectives}
    promised = {objective: wire.seconds(result.promised) for objective, result in results.items()}
    actual = {objective: wire.seconds(result.actual) for objective, result in results.items()}
    assert promised == {
        reasoning_pb2.OBJECTIVE_DEADLINE: 10,
        reasoning_pb2.OBJECTIVE_FIRST_TOKEN: 5,
        reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN: 9,
        reasoning_pb2.OBJECTIVE_PER_TOKEN: 1,
    }
    assert all(result.kept for result in results.values())
    assert actual[reasoning_pb2.OBJECTIVE_DEADLINE] == wire.seconds(done.latency)
    assert (
        0
        < actual[reasoning_pb2.OBJECTIVE_FIRST_TOKEN]
        < actual[reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN]
        < actual[reasoning_pb2.OBJECTIVE_DEADLINE]
    )
    assert wire.seconds(done.latency) >= wire.seconds(done.timings.total)


async def test_a_tight_budget_is_cut_and_still_answered() -> None:
    async with FakeWorker(Script(reasoning=150)) as worker, controller([worker.address]) as door:
        answer = await door.generate("support")
    plan, done = answer.plan, answer.completion
    assert 0 < plan.budget.reasoning_tokens <= 40
    assert done.reasoning_end in (
        generation_pb2.REASONING_END_BUDGET,
        generation_pb2.REASONING_END_DEADLINE,
    )
    assert done.usage.reasoning_tokens <= plan.budget.reasoning_tokens + plan.budget.grace_tokens
    assert len(answer.token_ids(FORCED)) == done.usage.forced_tokens > 0
    assert answer.text(ANSWER) == "it is 42"


async def test_the_worker_is_told_durations_that_run_from_its_own_receipt() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        plan = (await door.generate("analyst")).plan
    sent = worker.requests[0]
    assert wire.seconds(sent.deadline) <= wire.seconds(plan.deadline)
    assert wire.seconds(sent.budget.reason_until) <= wire.seconds(plan.budget.reason_until)
    assert sent.budget.answer_tokens == plan.budget.answer_tokens == 12


async def test_the_worker_is_told_when_to_look_for_a_stable_answer() -> None:
    policy = POLICY.replace(
        "deadline: 600ms}", "deadline: 600ms}\n    probe: {every: 8, first: 16, stable: 3, answer: 4}"
    )
    async with FakeWorker() as worker, controller([worker.address], policy) as door:
        await door.generate("analyst")
        await door.generate("support")
        at_once = reasoning_pb2.Wishes(mode=generation_pb2.MODE_NO_THINK)
        await door.generate("support", ask(wishes=at_once))
    without, probed, unthinking = worker.requests
    assert not without.HasField("probe")
    assert not unthinking.HasField("probe")
    assert probed.probe == worker_pb2.ProbeRule(
        first_reasoning_tokens=16, every_reasoning_tokens=8, stable_answers=3, answer_tokens=4
    )


async def test_a_plan_is_the_one_that_generate_makes_and_runs_nothing() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        response = await door.reasoning.Plan(
            reasoning_pb2.PlanRequest(request=ask()), metadata=key("analyst")
        )
        assert worker.requests == []
        made = (await door.generate("analyst")).plan
    assert response.plan.budget.reasoning_tokens == made.budget.reasoning_tokens == 96
    assert response.plan.request_id != made.request_id


async def test_what_was_learnt_of_prompts_is_used() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        first = await door.generate("analyst", ask("x" * 300))
        second = await door.generate("analyst", ask("x" * 300))
    exact = first.completion.usage.prompt_tokens
    assert first.plan.estimated_prompt_tokens != exact
    assert second.plan.estimated_prompt_tokens == exact


async def test_wishes_reach_the_plan() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        wishes = reasoning_pb2.Wishes(max_reasoning_tokens=17, max_answer_tokens=2)
        thinking = await door.generate("analyst", ask(wishes=wishes))
        at_once = await door.generate(
            "analyst", ask(wishes=reasoning_pb2.Wishes(mode=generation_pb2.MODE_NO_THINK))
        )
        hurried = await door.generate(
            "analyst", ask(wishes=reasoning_pb2.Wishes(deadline=Duration(seconds=3)))
        )
        called = await door.generate("analyst", timeout=2.0)
    assert thinking.plan.budget.reasoning_tokens == 17
    assert thinking.text(ANSWER) == "it is"
    assert at_once.plan.mode == generation_pb2.MODE_NO_THINK
    assert at_once.completion.reasoning_end == generation_pb2.REASONING_END_NONE
    assert wire.seconds(hurried.plan.deadline) == 3
    assert 1 < wire.seconds(called.plan.deadline) <= 2


@pytest.mark.parametrize(
    ("effort", "budget"),
    [
        (reasoning_pb2.EFFORT_NONE, 0),
        (reasoning_pb2.EFFORT_MINIMAL, 13),
        (reasoning_pb2.EFFORT_LOW, 50),
        (reasoning_pb2.EFFORT_MEDIUM, 96),
        (reasoning_pb2.EFFORT_HIGH, 96),
        (reasoning_pb2.EFFORT_UNSPECIFIED, 96),
    ],
)
async def test_an_effort_is_a_share_of_the_largest_budget(
    effort: reasoning_pb2.Effort.ValueType, budget: int
) -> None:
    """Of 200 in the policy, of which more than 96 never pays."""
    async with FakeWorker() as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", ask(wishes=reasoning_pb2.Wishes(effort=effort)))
    assert answer.plan.budget.reasoning_tokens == budget


async def test_all_output_together_keeps_the_callers_limit() -> None:
    async with FakeWorker(Script(reasoning=150)) as worker, controller([worker.address]) as door:
        wishes = reasoning_pb2.Wishes(max_output_tokens=60)
        answer = await door.generate("analyst", ask(wishes=wishes))
    assert answer.plan.budget.answer_tokens == 12
    assert answer.completion.usage.reasoning_tokens >= 20
    assert answer.completion.usage.output_tokens <= 60


async def test_a_promise_that_cannot_be_kept_is_refused_with_its_numbers() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        worker_seen = [await door.generate("late") for _ in range(3)]
        answer = await door.generate("impossible")
        counted = await standing(door, "impossible")
    assert all(seen.error is None for seen in worker_seen)
    assert answer.events == []
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.FAILED_PRECONDITION
    violation = detail(answer.error, details.PreconditionFailure).violations[0]
    assert (violation.type, violation.subject) == ("PROMISE", "impossible")
    assert violation.description.startswith("2 ms at p95: wait ")
    info = detail(answer.error, details.ErrorInfo)
    assert (info.reason, info.domain) == ("PROMISE_CANNOT_BE_KEPT", "curfew")
    assert info.metadata["deadline"] == "0.002000s"
    assert (counted.requests, counted.failed, counted.answered) == (1, 1, 0)


async def test_best_effort_answers_late_and_says_so() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        answer = await door.generate("late")
        counted = await standing(door, "late")
    assert answer.plan.promised_probability < 0.95
    assert "best effort" in answer.plan.why
    (deadline,) = answer.completion.objectives
    assert not deadline.kept
    assert (counted.answered, counted.kept) == (1, 0)


async def test_a_caller_that_leaves_frees_its_slot() -> None:
    async with FakeWorker(Script(pause_after=5), slots=1) as worker, controller([worker.address]) as door:
        call = door.call("analyst")
        await asyncio.wait_for(worker.paused.wait(), 10)
        call.cancel()
        await asyncio.wait_for(worker.idle.wait(), 10)
        assert worker.cancelled == 1
        worker.script.pause_after = None
        assert (await door.generate("analyst")).error is None
        counted = await standing(door, "analyst")
    assert (counted.requests, counted.answered, counted.failed) == (2, 1, 0)


async def test_the_calls_own_deadline_ends_it_at_the_worker_too() -> None:
    async with FakeWorker(Script(pause_after=5)) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", timeout=0.5)
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(worker.idle.wait(), 10)
    assert worker.cancelled == 1


async def test_a_slow_reader_gets_everything_in_few_messages() -> None:
    words = " ".join(f"word{number:0100}" for number in range(3000))
    script = Script(reasoning=0, answer=words, step_s=0.0)
    policy = POLICY.replace("answer: 12", "answer: 4k")
    async with (
        FakeWorker(script, max_sequence_tokens=8192) as worker,
        controller([worker.address], policy) as door,
    ):
        call = door.call("analyst", timeout=60)
        await asyncio.wait_for(worker.idle.wait(), 60)
        events = [event async for event in call]
    deltas = [event.delta for event in events[1:-1]]
    assert "".join(delta.text for delta in deltas) == words
    assert [i for delta in deltas for i in delta.token_ids] == [200 + number for number in range(3000)]
    assert events[-1].completion.usage.answer_tokens == 3000
    assert len(deltas) < 100


async def test_a_full_pool_says_when_to_come_back() -> None:
    full = RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "16 wait", retry_after(2.5))
    async with FakeWorker(Script(refuse_with=full)) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst")
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert wire.seconds(detail(answer.error, details.RetryInfo).retry_delay) == 2.5


async def test_a_prompt_that_is_too_long_is_the_callers_fault() -> None:
    text = "prompt 5000 + output 12 = 5012 tokens exceed the 2048 of a sequence"
    too_long = RpcError(grpc.StatusCode.OUT_OF_RANGE, text)
    async with FakeWorker(Script(refuse_with=too_long)) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", ask("x" * 5000))
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail(answer.error, details.BadRequest).field_violations
    assert (violation.field, violation.description) == ("messages", text)


async def test_a_worker_that_dies_is_reported_with_what_was_delivered() -> None:
    async with FakeWorker(Script(fail_after=7)) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst")
        counted = await standing(door, "analyst")
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in str(answer.error.details())
    info = detail(answer.error, details.ErrorInfo)
    assert (info.reason, info.metadata["delivered_tokens"]) == ("WORKER_LOST", "7")
    assert len(answer.token_ids(REASONING)) == 7
    assert (counted.requests, counted.failed) == (1, 1)


async def test_a_fault_of_the_worker_is_internal_and_says_nothing() -> None:
    for failure in (ValueError("secret"), RpcError(grpc.StatusCode.INVALID_ARGUMENT, "secret")):
        async with FakeWorker(Script(refuse_with=failure)) as worker, controller([worker.address]) as door:
            answer = await door.generate("analyst")
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(answer.error)


async def test_strangers_and_malformed_requests_reach_no_worker() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        stranger = await door.generate("nobody")
        empty = await door.generate("analyst", reasoning_pb2.GenerateRequest())
        planned = door.reasoning.Plan(reasoning_pb2.PlanRequest(), metadata=key("analyst"))
        assert await planned.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert stranger.error is not None
    assert stranger.error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert empty.error is not None
    assert empty.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail(empty.error, details.BadRequest).field_violations
    assert (violation.field, violation.description) == ("messages", "is empty; send at least one")
    assert worker.requests == []


async def test_many_callers_at_once_are_all_answered() -> None:
    async with FakeWorker(Script(reasoning=10), slots=4) as worker, controller([worker.address]) as door:
        answers = await asyncio.gather(*(door.generate("analyst") for _ in range(30)))
        counted = await standing(door, "analyst")
    assert [answer.error for answer in answers] == [None] * 30
    assert {answer.text(ANSWER) for answer in answers} == {"it is 42"}
    assert len({answer.plan.request_id for answer in answers}) == 30
    assert (counted.requests, counted.answered, counted.output_tokens) == (30, 30, 30 * 13)
    assert counted.reasoning_tokens == 300


SLOWS_DOWN = Script(reasoning=190, step_s=0.001, slow_step_s=0.006)
LONG = POLICY.replace(
    "{deadline: 600ms}\n    budget: {max: 40}", "{deadline: 700ms}\n    budget: {max: 190, answer: 60}"
)


async def test_a_worker_that_slows_down_ends_its_reasoning_earlier_and_the_caller_is_told() -> None:
    async with FakeWorker(SLOWS_DOWN) as worker, controller([worker.address], LONG) as door:
        answer = await door.generate("support")
    adjustments = [event.adjustment for event in answer.events if event.HasField("adjustment")]
    assert answer.completion.adjustments == len(adjustments) == len(worker.adjusted) >= 1
    planned_s = wire.seconds(answer.plan.budget.reason_until)
    ends_s = [wire.seconds(adjustment.budget.reason_until) for adjustment in adjustments]
    assert all(end_s < planned_s for end_s in ends_s)
    assert "reasoning ends earlier" in adjustments[0].why
    assert {request.request_id for request in worker.adjusted} == {answer.plan.request_id}
    assert answer.text(ANSWER) == "it is 42"


class AdjustsLate(FakeWorker):
    """Answers an adjustment only when the request is complete, and ends the request's stream after that."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self._complete, self._answered = asyncio.Event(), asyncio.Event()

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[Response, None]:
        async for response in super().Generate(request, context):
            yield response
        self._complete.set()
        await self._answered.wait()

    async def AdjustBudget(
        self, request: worker_pb2.AdjustBudgetRequest, context: AdjustContext
    ) -> worker_pb2.AdjustBudgetResponse:
        context.add_done_callback(lambda _: self._answered.set())  # type: ignore[arg-type]
        answer = await super().AdjustBudget(request, context)
        await self._complete.wait()
        return answer


async def test_an_adjustment_that_comes_too_late_is_not_told_after_the_accounting() -> None:
    async with AdjustsLate(SLOWS_DOWN) as worker, controller([worker.address], LONG) as door:
        answer = await door.generate("support")
    assert len(worker.adjusted) == 1
    assert answer.events[-1].HasField("completion")
    assert answer.completion.adjustments == 0


async def test_tools_and_the_answers_form_are_the_workers_to_take() -> None:
    tools = [generation_pb2.Tool(name="add", description="Adds numbers.")]
    choice = generation_pb2.ToolChoice(kind=generation_pb2.ToolChoice.KIND_AUTO, single=True)
    form = generation_pb2.AnswerFormat(json_schema='{"type": "object"}')
    async with FakeWorker() as worker, controller([worker.address]) as door:
        await door.generate("analyst", ask(tools=tools, tool_choice=choice, answer_format=form))
        await door.generate("analyst")
    asked, plain = worker.requests
    assert list(asked.tools) == tools
    assert (asked.tool_choice, asked.answer_format) == (choice, form)
    assert not any(plain.HasField(name) for name in ("tool_choice", "answer_format"))
