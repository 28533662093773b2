"""Tools and answer formats, from a caller's values to the contract's messages and back."""

from __future__ import annotations

import json

import pytest

from curfew import (
    Client,
    Delta,
    FinishReason,
    MalformedToolCall,
    Message,
    Options,
    Role,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from curfew.client import wire
from curfew.rpc.tools import tool_violations
from curfew.v1 import generation_pb2 as pb
from tests.curfew.reasoning_server import MALFORMED, serving

SCHEMA: dict[str, object] = {"type": "object", "properties": {"numbers": {"type": "array"}}}
ADD, NOW = Tool("add", "Adds.", SCHEMA), Tool("now")
CALL = ToolCall("call_1", "add", '{"numbers": [1, 2]}')
TURNS = [
    Message(Role.USER, "1 + 2?"),
    Message(Role.ASSISTANT, "", (CALL,)),
    Message(Role.TOOL, "3", tool_call_id="call_1"),
]


def test_a_request_says_what_its_options_say() -> None:
    message = wire.request(TURNS, Options(tools=[ADD, NOW], json_schema=SCHEMA, single_tool_call=True))
    assert list(tool_violations(message)) == []
    assert [(tool.name, tool.description) for tool in message.tools] == [("add", "Adds."), ("now", "")]
    assert json.loads(message.tools[0].parameters_json_schema) == SCHEMA
    assert message.tools[1].parameters_json_schema == ""
    assert json.loads(message.answer_format.json_schema) == SCHEMA
    assert message.tool_choice == pb.ToolChoice(kind=pb.ToolChoice.KIND_AUTO, single=True)
    call = pb.ToolCall(id="call_1", name="add", arguments_json='{"numbers": [1, 2]}')
    assert list(message.messages[1].tool_calls) == [call]
    assert (message.messages[2].role, message.messages[2].tool_call_id) == (pb.ROLE_TOOL, "call_1")


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (ToolChoice.REQUIRED, pb.ToolChoice(kind=pb.ToolChoice.KIND_REQUIRED)),
        (ToolChoice.NONE, pb.ToolChoice(kind=pb.ToolChoice.KIND_NONE)),
        ("now", pb.ToolChoice(kind=pb.ToolChoice.KIND_REQUIRED, name="now")),
    ],
)
def test_a_choice_is_a_kind_or_the_name_of_a_tool(choice: ToolChoice | str, told: pb.ToolChoice) -> None:
    assert wire.request("1 + 2?", Options(tools=[NOW], tool_choice=choice)).tool_choice == told


def test_what_is_not_said_is_not_sent() -> None:
    message = wire.request("1 + 2?", Options(tools=[NOW]))
    assert not any(message.HasField(name) for name in ("tool_choice", "answer_format"))


def test_a_reply_has_the_calls_that_hold_and_is_a_turn_of_the_conversation() -> None:
    with serving() as (_, address), Client(address, key="k") as client:
        stream = client.generate("calls", tools=[ADD, NOW])
        pieces = [piece for event in stream if isinstance(event, Delta) for piece in event.tool_calls]
        reply = stream.reply()
    assert pieces[0] == ToolCallDelta(0, "call_1", "add", '{"numbers"')
    assert reply.tool_calls == (CALL,)
    assert reply.tool_calls[0].arguments == {"numbers": [1, 2]}
    assert reply.completion.finish_reason is FinishReason.TOOL_CALLS
    (malformed,) = reply.completion.malformed_tool_calls
    assert malformed == MalformedToolCall(1, MALFORMED.text, MALFORMED.why)
    assert reply.turn == Message(Role.ASSISTANT, "I add.", (CALL,))
