"""Tools, their calls and their results, as the family's chat format writes them.

Nobody's JSON can break out: where it would spell a tag of the format, the tag's `<` is written as `\\u003c`,
which stands for the same in JSON, and only there, so that all else reads as the model was trained on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ToolTag(Enum):
    """The tags around tools, calls and results. They are ordinary text, several tokens long."""

    TOOLS = "<AVAILABLE_TOOLS>"
    TOOLS_END = "</AVAILABLE_TOOLS>"
    CALLS = "<TOOLCALL>"
    CALLS_END = "</TOOLCALL>"
    RESULTS = "<TOOL_RESPONSE>"
    RESULTS_END = "</TOOL_RESPONSE>"


_BEGINS_TAG = re.compile("<(?=/?(?:AVAILABLE_TOOLS|TOOLCALL|TOOL_RESPONSE|think)>)")
_NO_ARGUMENTS: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}
# The doubled braces are the published template's, and so what the model has seen.
_INSTRUCTIONS = """\
If you decide to call any tool(s), use the following format:
<TOOLCALL>[{{"name": "tool_name1", "arguments": "tool_args1"}}, \
{{"name": "tool_name2", "arguments": "tool_args2"}}]</TOOLCALL>

The user will execute tool-calls and return responses from tool(s) in this format:
<TOOL_RESPONSE>[{{"tool_response1"}}, {{"tool_response2"}}]</TOOL_RESPONSE>

Based on the tool responses, you can call additional tools if needed, correct tool calls if any errors are \
found, or just respond to the user."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: JSON Schema of its arguments; None takes nothing."""

    name: str
    description: str = ""
    parameters: dict[str, object] | None = None

    @property
    def schema(self) -> dict[str, object]:
        """JSON Schema of its arguments."""
        return _NO_ARGUMENTS if self.parameters is None else self.parameters


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn made. arguments_json: the text of a JSON object."""

    name: str
    arguments_json: str


def tools_text(tools: Sequence[Tool]) -> str:
    """What the system turn says of tools."""
    described = [
        {"name": tool.name, "description": tool.description, "parameters": tool.schema} for tool in tools
    ]
    listed = ", ".join(_within(json.dumps(tool, ensure_ascii=False)) for tool in described)
    return (
        "You can use the following tools to assist the user if required:\n"
        f"{ToolTag.TOOLS.value}[{listed}]{ToolTag.TOOLS_END.value}\n\n{_INSTRUCTIONS}"
    )


def calls_text(calls: Sequence[ToolCall]) -> str:
    """What an assistant turn says where it calls tools."""
    listed = ", ".join(
        f'{{"name": {json.dumps(call.name)}, "arguments": {_within(call.arguments_json)}}}' for call in calls
    )
    return f"{ToolTag.CALLS.value}[{listed}]{ToolTag.CALLS_END.value}"


def results_text(results: Sequence[str]) -> str:
    """What the user's turn says where tools have returned: JSON as it is, other text as a string."""
    listed = ", ".join(
        _within(result if _is_json(result) else json.dumps(result, ensure_ascii=False)) for result in results
    )
    return f"{ToolTag.RESULTS.value}[{listed}]{ToolTag.RESULTS_END.value}"


def _within(text: str) -> str:
    """JSON in which no tag of the format stands. A `<` of JSON is always within a string."""
    return _BEGINS_TAG.sub(r"\\u003c", text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
