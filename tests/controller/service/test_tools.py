"""Tools, their calls and answer formats on their way through a controller."""

from __future__ import annotations

import grpc
import pytest

from controller.service.asking import prompt_bytes
from curfew.rpc.errors import invalid
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Answer, ask, controller

ADD = pb.Tool(name="add", description="Adds.", parameters_json_schema='{"type":"object"}')
MALFORMED = pb.MalformedToolCall(index=2, text="{", why="the answer ends before the call does")


def calls(count: int) -> tuple[pb.ToolCallDelta, ...]:
    """As a worker tells them, in pieces."""
    return tuple(
        piece
        for index in range(count)
        for piece in (
            pb.ToolCallDelta(index=index, id=f"call_{index}", name="add", arguments_json='{"numbers"'),
            pb.ToolCallDelta(index=index, arguments_json=": [1, 2]}"),
        )
    )


def told(answer: Answer) -> list[pb.ToolCallDelta]:
    return [call for event in answer.events for call in event.delta.tool_calls]


async def test_calls_come_with_ids_of_the_request_and_what_was_malformed_with_the_accounting() -> None:
    script = Script(calls=calls(2), malformed=(MALFORMED,))
    async with FakeWorker(script) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", ask(tools=[ADD]))
    assert answer.error is None
    begun = [(call.index, call.id, call.name) for call in told(answer) if call.name]
    request_id = answer.plan.request_id
    assert begun == [(0, f"call_{request_id}_0", "add"), (1, f"call_{request_id}_1", "add")]
    for index in range(2):
        arguments = "".join(call.arguments_json for call in told(answer) if call.index == index)
        assert arguments == '{"numbers": [1, 2]}'
    assert answer.completion.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert list(answer.completion.malformed_tool_calls) == [MALFORMED]


async def test_a_request_that_goes_on_elsewhere_keeps_the_ids_of_its_calls() -> None:
    # The first worker is lost behind the first call's first piece.
    script = Script(reasoning=2, answer="", calls=calls(2), fail_after=3)
    async with FakeWorker(script) as one, FakeWorker(script) as other:
        one.loses_resumed = other.loses_resumed = False
        async with controller([one.address, other.address]) as door:
            answer = await door.generate("analyst", ask(tools=[ADD]))
    assert answer.error is None
    assert len(answer.completion.attempts) == 2
    request_id = answer.plan.request_id
    assert [call.id for call in told(answer) if call.id] == [f"call_{request_id}_{n}" for n in range(2)]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ask(tools=[ADD, ADD]), "tools[1].name"),
        (ask(answer_format=pb.AnswerFormat(json_schema="[]")), "answer_format.json_schema"),
    ],
)
async def test_what_is_wrong_is_told_before_a_worker_hears_of_it(
    request_: reasoning_pb2.GenerateRequest, field: str
) -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        error = (await door.generate("analyst", request_)).error
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith(field)
    assert not worker.requests


SCHEMA = ("answer_format.json_schema", 'cannot be enforced: Unimplemented keys: ["not"]')
PARAMETERS = ("tools[1].parameters_json_schema", "cannot be enforced: nothing keeps it")


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        ([SCHEMA], grpc.StatusCode.INVALID_ARGUMENT, ": ".join(SCHEMA)),
        ([SCHEMA, PARAMETERS], grpc.StatusCode.INVALID_ARGUMENT, ": ".join(PARAMETERS)),
        # This one the controller should have found, or made itself.
        ([SCHEMA, ("budget.answer_tokens", "secret")], grpc.StatusCode.INTERNAL, "internal error"),
    ],
)
async def test_what_only_a_worker_can_tell_of_a_schema_is_told_to_the_caller(
    wrong: list[tuple[str, str]], code: grpc.StatusCode, told: str
) -> None:
    script = Script(refuse_with=invalid(wrong))
    async with FakeWorker(script) as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", ask(tools=[ADD]))
    assert answer.error is not None
    assert answer.error.code() is code
    assert told in (answer.error.details() or "")
    assert "secret" not in (answer.error.details() or "")


def test_what_the_model_is_shown_of_tools_counts_as_prompt() -> None:
    plain, with_tools, hidden = ask(), ask(tools=[ADD]), ask(tools=[ADD])
    hidden.tool_choice.kind = pb.ToolChoice.KIND_NONE
    called = reasoning_pb2.GenerateRequest(messages=[*plain.messages])
    called.messages.add(role=pb.ROLE_ASSISTANT).tool_calls.add(arguments_json='{"numbers": [1, 2]}')
    assert prompt_bytes(plain) == prompt_bytes(hidden)
    assert prompt_bytes(with_tools) > prompt_bytes(plain) + len(ADD.parameters_json_schema)
    assert prompt_bytes(called) > prompt_bytes(plain) + len('{"numbers": [1, 2]}')
