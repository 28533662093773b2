"""What the contracts refuse of tools, calls, results and answer formats, in a request of either hop."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from curfew.rpc.tools import NotAnObjectError, parse_object, tool_violations
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2, worker_pb2

Request = reasoning_pb2.GenerateRequest
Change = Callable[[Request], object]
USER, ASSISTANT, TOOL = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL


def call(call_id: str, name: str = "add", arguments: str = "{}") -> pb.ToolCall:
    return pb.ToolCall(id=call_id, name=name, arguments_json=arguments)


def asks(*call_ids: str) -> pb.Message:
    return pb.Message(role=ASSISTANT, tool_calls=[call(call_id) for call_id in call_ids])


def result(call_id: str) -> pb.Message:
    return pb.Message(role=TOOL, content="3", tool_call_id=call_id)


def user() -> pb.Message:
    return pb.Message(role=USER, content="1 + 2?")


def turns(*messages: pb.Message) -> Change:
    def change(request: Request) -> None:
        del request.messages[:]
        request.messages.extend(messages)

    return change


def tool(**fields: str) -> Change:
    return lambda request: request.tools.append(pb.Tool(**({"name": "other"} | fields)))


def choice(kind: pb.ToolChoice.Kind.ValueType, name: str = "") -> Change:
    return lambda request: request.tool_choice.CopyFrom(pb.ToolChoice(kind=kind, name=name))


def answer(schema: str) -> Change:
    return lambda request: request.answer_format.CopyFrom(pb.AnswerFormat(json_schema=schema))


def several(*changes: Change) -> Change:
    def change(request: Request) -> None:
        for one in changes:
            one(request)

    return change


def request() -> Request:
    return Request(
        messages=[user(), asks("a", "b"), result("b"), result("a")],
        tools=[
            pb.Tool(name="add", description="Adds.", parameters_json_schema='{"type": "object"}'),
            pb.Tool(name="now"),
        ],
    )


REQUIRED, AUTO = pb.ToolChoice.KIND_REQUIRED, pb.ToolChoice.KIND_AUTO


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        turns(user(), asks("a"), user()),
        turns(user(), asks("a"), result("a"), asks("b"), result("b"), user()),
        choice(REQUIRED),
        choice(REQUIRED, "now"),
        answer("{}"),
        several(choice(AUTO), answer('{"type": "object"}')),
    ],
)
def test_what_keeps_the_rules_is_taken(change: Change) -> None:
    asked = request()
    change(asked)
    assert list(tool_violations(asked)) == []


@pytest.mark.parametrize(
    ("change", "field", "description"),
    [
        (tool(name="a b"), "tools[2].name", "'a b' is no name"),
        (tool(name=""), "tools[2].name", "'' is no name"),
        (tool(name="x" * 65), "tools[2].name", "allowed are 1 to 64"),
        (tool(name="add"), "tools[2].name", "'add' is the name of another tool too"),
        (tool(description="x" * 4097), "tools[2].description", "4097 characters; allowed are at most 4096"),
        (tool(parameters_json_schema="{"), "tools[2].parameters_json_schema", "is no JSON: Expecting"),
        (tool(parameters_json_schema="[1]"), "tools[2].parameters_json_schema", "JSON object, is '[1]'"),
        (tool(parameters_json_schema='{"a": NaN}'), "tools[2].parameters_json_schema", "NaN is no number"),
        (
            tool(parameters_json_schema='{"type": "string"}'),
            "tools[2].parameters_json_schema",
            "must be of the type object, is of 'string'",
        ),
        (
            tool(parameters_json_schema=json.dumps({"title": "x" * (16 << 10)})),
            "tools[2].parameters_json_schema",
            "bytes; allowed are at most 16384",
        ),
        (lambda r: [tool(name=f"t{n}")(r) for n in range(63)], "tools", "65 tools; allowed are at most 64"),
        (
            lambda r: [tool(name=f"t{n}", description="é" * 4000)(r) for n in range(17)],
            "tools",
            "bytes of descriptions and schemas; allowed are at most 131072",
        ),
        (several(lambda r: r.ClearField("tools"), choice(AUTO)), "tool_choice", "only for a request with"),
        (lambda r: setattr(r.tool_choice, "kind", 9), "tool_choice.kind", "9 is not a kind"),
        (choice(AUTO, "add"), "tool_choice.name", "'add' is only for KIND_REQUIRED"),
        (choice(REQUIRED, "sub"), "tool_choice.name", "'sub' is none of the tools"),
        (answer(""), "answer_format.json_schema", "is no JSON"),
        (answer("true"), "answer_format.json_schema", "must be a JSON object, is 'true'"),
        (answer('{"const": "\\ud800"}'), "answer_format.json_schema", "half of a surrogate pair"),
        (answer('{"a":' * 20_000), "answer_format.json_schema", "bytes; allowed are at most 65536"),
        (answer('{"a":' * 10_000), "answer_format.json_schema", "nested too deeply"),
        (several(answer("{}"), choice(REQUIRED)), "answer_format", "KIND_REQUIRED"),
        (several(answer("{}"), lambda r: r.sampling.stop.append("x")), "sampling.stop", "would cut"),
        (
            turns(user(), asks("a"), result("a"), result("b")),
            "messages[3].tool_call_id",
            "'b' is no call that waits for a result",
        ),
        (turns(user(), asks("a"), user(), result("a")), "messages[3].tool_call_id", "'a' is no call"),
        (turns(user(), asks("a"), result("a"), result("a")), "messages[3].tool_call_id", "'a' is no call"),
        (turns(user(), asks("a", "b"), result("b"), user()), "messages[3].role", "the results of 'a'"),
        (turns(user(), asks("a", "b"), result("b")), "messages", "end before the results of 'a'"),
        (turns(pb.Message(role=USER, tool_call_id="a")), "messages[0].tool_call_id", "only for ROLE_TOOL"),
        (turns(pb.Message(role=USER, tool_calls=[call("a")])), "messages[0].tool_calls", "ROLE_ASSISTANT"),
        (turns(asks("a"), result("a"), asks("a"), user()), "messages[2].tool_calls[0].id", "of another call"),
        (turns(asks(""), user()), "messages[0].tool_calls[0].id", "0 characters; allowed are 1 to 128"),
        (
            turns(
                *[
                    pb.Message(role=ASSISTANT, tool_calls=[call(str(n), arguments="x" * 9000)])
                    for n in range(60)
                ]
            ),
            "messages",
            "540000 bytes of arguments; allowed are at most 524288",
        ),
        (turns(asks(*map(str, range(33))), user()), "messages[0].tool_calls", "33 calls"),
        (
            turns(pb.Message(role=ASSISTANT, tool_calls=[call("a", "a b")]), user()),
            "messages[0].tool_calls[0].name",
            "'a b' is no name",
        ),
        (
            turns(pb.Message(role=ASSISTANT, tool_calls=[call("a", arguments="1")]), user()),
            "messages[0].tool_calls[0].arguments_json",
            "must be a JSON object, is '1'",
        ),
    ],
)
def test_a_fault_is_named_with_its_value(change: Change, field: str, description: str) -> None:
    faulty = request()
    change(faulty)
    ((found, why),) = tool_violations(faulty)
    assert found == field
    assert description in why


def test_the_rules_are_the_same_between_controller_and_worker() -> None:
    faulty = worker_pb2.WorkerServiceGenerateRequest(messages=[user(), asks("a"), result("b")])
    assert [field for field, _ in tool_violations(faulty)] == ["messages[2].tool_call_id", "messages"]


def test_an_object_is_read_as_it_is_written() -> None:
    assert parse_object(' {"b": [1, "<é"], "a": null}') == {"b": [1, "<é"], "a": None}
    with pytest.raises(NotAnObjectError, match="too large numbers"):
        parse_object('{"a": ' + "9" * 5000 + "}")
