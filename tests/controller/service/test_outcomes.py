"""Reports of how good answers were."""

from __future__ import annotations

import math

import grpc
import pytest
from google.rpc import error_details_pb2 as details

from curfew.v1 import generation_pb2, reasoning_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, Door, ask, controller, detail, key

LEARNING = POLICY.replace("quality: {curve: sums}", "quality: {curve: sums, learn: true}").replace(
    "[0, 0.28]", "[0, 0.6]"
)


async def report(door: Door, tenant: str, request_id: str, score: float) -> grpc.aio.AioRpcError | None:
    request = reasoning_pb2.ReportOutcomeRequest(request_id=request_id, score=score)
    try:
        await door.reasoning.ReportOutcome(request, metadata=key(tenant), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def planned(door: Door, tenant: str) -> reasoning_pb2.Plan:
    request = reasoning_pb2.PlanRequest(request=ask())
    response = await door.reasoning.Plan(request, metadata=key(tenant), timeout=20)
    return response.plan


async def test_plans_follow_what_callers_report() -> None:
    async with FakeWorker(Script(reasoning=20)) as worker, controller([worker.address], LEARNING) as door:
        assert (await planned(door, "analyst")).mode == generation_pb2.MODE_THINK
        for _ in range(60):
            answer = await door.generate("analyst")
            at_once = answer.plan.mode == generation_pb2.MODE_NO_THINK
            assert await report(door, "analyst", answer.plan.request_id, float(at_once)) is None
        assert (await planned(door, "analyst")).mode == generation_pb2.MODE_NO_THINK


async def test_reports_do_not_move_a_curve_that_the_policy_holds_fast() -> None:
    async with FakeWorker(Script(reasoning=20)) as worker, controller([worker.address]) as door:
        before = await planned(door, "analyst")
        for _ in range(40):
            answer = await door.generate("analyst")
            assert await report(door, "analyst", answer.plan.request_id, 0.0) is None
        after = await planned(door, "analyst")
        assert (after.mode, after.budget.reasoning_tokens) == (before.mode, before.budget.reasoning_tokens)


async def test_a_report_may_be_sent_again_but_not_changed() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        request_id = (await door.generate("analyst")).plan.request_id
        assert await report(door, "analyst", request_id, 1.0) is None
        assert await report(door, "analyst", request_id, 1.0) is None
        changed = await report(door, "analyst", request_id, 0.0)
    assert changed is not None
    assert changed.code() is grpc.StatusCode.ALREADY_EXISTS
    assert detail(changed, details.ErrorInfo).reason == "OUTCOME_ALREADY_REPORTED"


async def test_a_tenant_cannot_tell_another_s_request_from_none() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        request_id = (await door.generate("analyst")).plan.request_id
        other = await report(door, "support", request_id, 1.0)
        unknown = await report(door, "support", "0" * len(request_id), 1.0)
    assert other is not None
    assert unknown is not None
    assert other.code() is unknown.code() is grpc.StatusCode.NOT_FOUND
    assert other.details() == unknown.details()


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
async def test_a_score_out_of_range_is_refused(score: float) -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        error = await report(door, "analyst", "", score)
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = detail(error, details.BadRequest).field_violations
    assert [violation.field for violation in violations] == ["request_id", "score"]


async def test_a_stranger_reports_nothing() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        error = await report(door, "xyz", "1", 1.0)
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
