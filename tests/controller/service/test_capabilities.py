"""Workers that cannot do all."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from curfew.v1.worker_pb2 import WorkerCapabilities
from tests.controller.fake_worker import ALL, FakeWorker, Script
from tests.controller.service.harness import ask, controller, detail


def but(**changes: bool) -> WorkerCapabilities:
    told = WorkerCapabilities()
    told.CopyFrom(ALL)
    for field, value in changes.items():
        setattr(told, field, value)
    return told


def with_tools() -> reasoning_pb2.GenerateRequest:
    return ask(tools=[pb.Tool(name="look", description="Looks.")])


def with_format() -> reasoning_pb2.GenerateRequest:
    return ask(answer_format=pb.AnswerFormat(json_schema='{"type": "object"}'))


@pytest.mark.parametrize(("request_of", "lacking"), [(with_tools, "tools"), (with_format, "answer_format")])
async def test_a_request_goes_to_a_worker_that_can_take_it(
    request_of: Callable[[], reasoning_pb2.GenerateRequest], lacking: str
) -> None:
    async with (
        FakeWorker(capabilities=None) as old,
        FakeWorker(capabilities=but(**{lacking: False})) as unable,
        controller([old.address, unable.address]) as door,
    ):
        answer = await door.generate("analyst", request_of())
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert lacking in str(answer.error.details())
        (violation,) = detail(answer.error, error_details_pb2.PreconditionFailure).violations
        assert (violation.type, violation.subject) == ("CAPABILITY", lacking)
        assert (await door.generate("analyst")).error is None
    async with (
        FakeWorker(capabilities=but(**{lacking: False})) as unable,
        FakeWorker(capabilities=ALL) as able,
        controller([unable.address, able.address]) as door,
    ):
        while (answer := await door.generate("analyst", request_of())).error is not None:
            pass  # it is not known yet
        plans = [(await door.generate("analyst", request_of())).plan for _ in range(4)]
        assert {plan.worker for plan in plans} == {able.address}
        assert not unable.requests


async def test_one_that_cannot_be_taken_now_is_told_to_come_again() -> None:
    async with (
        FakeWorker(capabilities=None) as unable,
        FakeWorker(capabilities=ALL) as able,
        controller([unable.address, able.address]) as door,
    ):
        while (await door.generate("analyst", with_tools())).error is not None:
            pass  # it is not known yet
        await able.stop()
        while (answer := await door.generate("analyst", with_tools())).error is None:
            pass  # its end is not known yet
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_was_passed_on_of_a_worker_that_cannot_resume_is_not_continued_elsewhere() -> None:
    async with (
        FakeWorker(Script(fail_after=4), capabilities=but(resume=False)) as one,
        FakeWorker(Script(fail_after=4), capabilities=but(resume=False)) as two,
        controller([one.address, two.address]) as door,
    ):
        answer = await door.generate("analyst")
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    assert detail(answer.error, error_details_pb2.ErrorInfo).metadata["delivered_tokens"] == "4"
    assert len(one.requests) + len(two.requests) == 1


async def test_a_request_of_which_nothing_was_passed_on_begins_anew_at_a_worker_that_cannot_resume() -> None:
    async with (
        FakeWorker(Script(fail_after=0), capabilities=but(resume=False)) as one,
        FakeWorker(Script(fail_after=0), capabilities=but(resume=False)) as two,
        controller([one.address, two.address]) as door,
    ):
        one.loses_resumed = two.loses_resumed = False
        answer = await door.generate("analyst")
    assert answer.error is None
    assert len(answer.completion.attempts) == 2


async def test_without_token_ids_the_completion_counts() -> None:
    async with (
        FakeWorker(Script(reasoning=6), capabilities=but(token_ids=False)) as worker,
        controller([worker.address]) as door,
    ):
        answer = await door.generate("analyst")
    assert answer.error is None
    assert answer.token_ids(pb.PHASE_REASONING) == []
    assert answer.completion.usage.reasoning_tokens == 6
    (attempt,) = answer.completion.attempts
    assert attempt.output_tokens == answer.completion.usage.output_tokens > 6


async def test_a_worker_that_takes_no_adjustments_gets_none() -> None:
    slow = Script(reasoning=60, step_s=0.002, slow_step_s=0.02)
    async with (
        FakeWorker(slow, capabilities=but(adjust=False)) as worker,
        controller([worker.address]) as door,
    ):
        answer = await door.generate("support")
    assert answer.error is None
    assert not worker.adjusted
    assert not worker.requests[0].HasField("reserve_reasoning_tokens")
