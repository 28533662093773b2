"""What the contracts ask of tools, of calls and their results, and of answer formats, at both hops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2, worker_pb2

MAX_TOOLS = 64
MAX_CALLS = 32
"""Of one answer."""
MAX_DESCRIPTION = 4096
MAX_CALL_ID = 128
MAX_PARAMETERS_BYTES = 16 << 10
MAX_SCHEMA_BYTES = 64 << 10
MAX_TOOLS_BYTES = 128 << 10
"""Of all descriptions and schemas together: they are part of every prompt."""

MAX_ARGUMENTS_BYTES = 512 << 10
"""Of all calls in a conversation: so much is read in some 10 ms."""

Request = reasoning_pb2.GenerateRequest | worker_pb2.WorkerServiceGenerateRequest
Violation = tuple[str, str]
"""Path of a field, and what is wrong with which value."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_KINDS = pb.ToolChoice.Kind.values()
_RESULTS_OF = "answer every call of the assistant turn before, once each"


class NotAnObjectError(ValueError):
    """A text is not that of a JSON object."""


def parse_object(text: str) -> dict[str, object]:
    """The JSON object that a text is. Raises NotAnObjectError with what is wrong: `NaN` and its like are, and
    halves of surrogate pairs, which no UTF-8 can write.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotAnObjectError(f"is no JSON: {error.msg} at character {error.pos}") from None
    except NotAnObjectError:
        raise
    except UnicodeEncodeError:
        raise NotAnObjectError("has half of a surrogate pair") from None
    except (RecursionError, ValueError):  # of a number with too many digits
        raise NotAnObjectError("is JSON that is nested too deeply or has too large numbers") from None
    if not isinstance(value, dict):
        raise NotAnObjectError(f"must be a JSON object, is {text.strip()[:20]!r}")
    return value


def tool_violations(request: Request) -> Iterator[Violation]:
    """Everything that is wrong with a request's tools, tool choice, answer format, and turns of calls and
    results.
    """
    yield from _tools(request.tools)
    if request.HasField("tool_choice"):
        yield from _choice(request.tool_choice, {tool.name for tool in request.tools})
    if request.HasField("answer_format"):
        yield from _format(request)
    yield from _turns(request.messages)


def _tools(tools: Sequence[pb.Tool]) -> Iterator[Violation]:
    if len(tools) > MAX_TOOLS:
        yield "tools", f"{len(tools)} tools; allowed are at most {MAX_TOOLS}"
        return
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        field = f"tools[{number}]"
        if not _NAME.fullmatch(tool.name):
            allowed = "allowed are 1 to 64 of letters, digits, `_`, `-` and `.`"
            yield f"{field}.name", f"{tool.name[:64]!r} is no name; {allowed}"
        elif tool.name in seen:
            yield f"{field}.name", f"{tool.name!r} is the name of another tool too"
        seen.add(tool.name)
        if len(tool.description) > MAX_DESCRIPTION:
            yield (
                f"{field}.description",
                f"{len(tool.description)} characters; allowed are at most {MAX_DESCRIPTION}",
            )
        if tool.parameters_json_schema:
            yield from _parameters(f"{field}.parameters_json_schema", tool.parameters_json_schema)
    total = sum(len(t.description.encode()) + len(t.parameters_json_schema.encode()) for t in tools)
    if total > MAX_TOOLS_BYTES:
        yield "tools", f"{total} bytes of descriptions and schemas; allowed are at most {MAX_TOOLS_BYTES}"


def _parameters(field: str, schema: str) -> Iterator[Violation]:
    wrong = list(_object(field, schema, MAX_PARAMETERS_BYTES))
    yield from wrong
    kind = "object" if wrong else parse_object(schema).get("type", "object")
    if kind != "object":
        yield field, f"must be of the type object, is of {kind!r}"


def _choice(choice: pb.ToolChoice, names: set[str]) -> Iterator[Violation]:
    if not names:
        yield "tool_choice", "is only for a request with tools"
    if choice.kind not in _KINDS:
        yield "tool_choice.kind", f"{choice.kind} is not a kind"
    if choice.name and choice.kind != pb.ToolChoice.KIND_REQUIRED:
        yield "tool_choice.name", f"{choice.name[:64]!r} is only for KIND_REQUIRED"
    elif choice.name and choice.name not in names:
        yield "tool_choice.name", f"{choice.name[:64]!r} is none of the tools"


def _format(request: Request) -> Iterator[Violation]:
    yield from _object("answer_format.json_schema", request.answer_format.json_schema, MAX_SCHEMA_BYTES)
    if request.tool_choice.kind == pb.ToolChoice.KIND_REQUIRED:
        yield "answer_format", "does not go together with a tool choice of KIND_REQUIRED"
    if request.sampling.stop:
        yield "sampling.stop", "would cut an answer that has a format; leave one of the two out"


def _object(field: str, text: str, most_bytes: int) -> Iterator[Violation]:
    size = len(text.encode())
    if size > most_bytes:
        yield field, f"{size} bytes; allowed are at most {most_bytes}"
        return
    try:
        parse_object(text)
    except NotAnObjectError as error:
        yield field, str(error)


def _turns(messages: Sequence[pb.Message]) -> Iterator[Violation]:
    total = sum(len(call.arguments_json.encode()) for turn in messages for call in turn.tool_calls)
    if total > MAX_ARGUMENTS_BYTES:
        yield "messages", f"{total} bytes of arguments; allowed are at most {MAX_ARGUMENTS_BYTES}"
        return
    ids: set[str] = set()
    due: set[str] = set()
    """Calls of the assistant turn before that no tool turn has answered."""
    for number, message in enumerate(messages):
        field, is_result = f"messages[{number}]", message.role == pb.ROLE_TOOL
        if is_result and message.tool_call_id in due:
            due.discard(message.tool_call_id)
        elif is_result:
            shown = repr(message.tool_call_id[:MAX_CALL_ID])
            yield f"{field}.tool_call_id", f"{shown} is no call that waits for a result; {_RESULTS_OF}"
        elif message.tool_call_id:
            yield f"{field}.tool_call_id", "is only for ROLE_TOOL"
        elif due and messages[number - 1].role == pb.ROLE_TOOL:
            missing = ", ".join(sorted(repr(call_id) for call_id in due))
            yield f"{field}.role", f"comes before the results of {missing}; {_RESULTS_OF}"
        if message.tool_calls and message.role != pb.ROLE_ASSISTANT:
            yield f"{field}.tool_calls", "is only for ROLE_ASSISTANT"
        elif not is_result:
            due = {call.id for call in message.tool_calls}
        yield from _calls(f"{field}.tool_calls", message.tool_calls, ids)
    if due and messages[-1].role == pb.ROLE_TOOL:
        missing = ", ".join(sorted(repr(call_id) for call_id in due))
        yield "messages", f"end before the results of {missing}; {_RESULTS_OF}"


def _calls(field: str, calls: Sequence[pb.ToolCall], ids: set[str]) -> Iterator[Violation]:
    """ids: of the calls before; gets those of these."""
    if len(calls) > MAX_CALLS:
        yield field, f"{len(calls)} calls; allowed are at most {MAX_CALLS}"
        return
    for number, call in enumerate(calls):
        path = f"{field}[{number}]"
        if not 1 <= len(call.id) <= MAX_CALL_ID:
            yield f"{path}.id", f"{len(call.id)} characters; allowed are 1 to {MAX_CALL_ID}"
        elif call.id in ids:
            yield f"{path}.id", f"{call.id!r} is the id of another call too"
        ids.add(call.id)
        if not _NAME.fullmatch(call.name):
            yield f"{path}.name", f"{call.name[:64]!r} is no name of a tool"
        try:
            parse_object(call.arguments_json)
        except NotAnObjectError as error:
            yield f"{path}.arguments_json", str(error)


def _no_constant(name: str) -> object:
    raise NotAnObjectError(f"is no JSON: {name} is no number of it")
