"""Tools, calls and results in the family's chat format, exactly, and nobody's JSON can become more."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.tokenizer import make_tokenizer
from worker.model.chat import Chat, Role, Turn
from worker.model.tools import Tool, ToolCall, calls_text, results_text, tools_text

CHAT = Chat(make_tokenizer())
ADD = Tool("add", "Adds numbers.", {"type": "object", "properties": {"numbers": {"type": "array"}}})
NOW = Tool("now")
TAGS = [
    "<AVAILABLE_TOOLS>", "</AVAILABLE_TOOLS>", "<TOOLCALL>", "</TOOLCALL>", "<TOOL_RESPONSE>",
    "</TOOL_RESPONSE>", "<think>", "</think>",
]  # fmt: skip
# As the template that is published with the model renders them.
SHOWN = (
    "You can use the following tools to assist the user if required:\n"
    '<AVAILABLE_TOOLS>[{"name": "add", "description": "Adds numbers.", "parameters": {"type": "object", '
    '"properties": {"numbers": {"type": "array"}}}}, {"name": "now", "description": "", "parameters": '
    '{"type": "object", "properties": {}, "additionalProperties": false}}]</AVAILABLE_TOOLS>\n\n'
    "If you decide to call any tool(s), use the following format:\n"
    '<TOOLCALL>[{{"name": "tool_name1", "arguments": "tool_args1"}}, '
    '{{"name": "tool_name2", "arguments": "tool_args2"}}]</TOOLCALL>\n\n'
    "The user will execute tool-calls and return responses from tool(s) in this format:\n"
    '<TOOL_RESPONSE>[{{"tool_response1"}}, {{"tool_response2"}}]</TOOL_RESPONSE>\n\n'
    "Based on the tool responses, you can call additional tools if needed, correct tool calls if any errors"
    " are found, or just respond to the user."
)


def prompt(*turns: Turn, tools: tuple[Tool, ...] = ()) -> str:
    ids = CHAT.prompt(turns, think=True, tools=tools).ids
    parts = [f"[{i}]".encode() if i in CHAT.special_ids else CHAT.token_bytes[i] for i in ids]
    return b"".join(parts).decode()


@pytest.mark.parametrize(("system", "head"), [("", ""), ("Be brief.", "Be brief.\n\n")])
def test_the_system_turn_shows_the_tools_and_is_what_requests_share(system: str, head: str) -> None:
    turns = [Turn(Role.SYSTEM, system), Turn(Role.USER, "1 + 2?")]
    shown = prompt(*turns, tools=(ADD, NOW))
    assert shown == f"[10]System\n{head}{SHOWN}\n[11]User\n1 + 2?\n[11]Assistant\n<think>\n"
    made = CHAT.prompt(turns, think=True, tools=(ADD, NOW))
    other = CHAT.prompt([turns[0], Turn(Role.USER, "3?")], think=False, tools=(ADD, NOW))
    assert made.shared == other.shared
    assert made.ids[: made.shared] == other.ids[: other.shared]


def test_calls_follow_what_the_assistant_said_and_results_are_one_turn_of_the_users() -> None:
    calls = (ToolCall("add", '{"numbers":[1,2]}'), ToolCall("now", "{}"))
    turns = [
        Turn(Role.USER, "1 + 2?"),
        Turn(Role.ASSISTANT, "<think>\nhm</think>\n\nI add.\n", calls),
        Turn(Role.TOOL, '{"sum": 3}'),
        Turn(Role.TOOL, 'It is "noon".\n'),
        Turn(Role.ASSISTANT, "", calls[1:]),
        Turn(Role.TOOL, "12"),
    ]
    assert prompt(*turns) == (
        "[10]System\n\n[11]User\n1 + 2?\n"
        '[11]Assistant\nI add.\n\n<TOOLCALL>[{"name": "add", "arguments": {"numbers":[1,2]}}, '
        '{"name": "now", "arguments": {}}]</TOOLCALL>\n[12]\n'
        '[11]User\n<TOOL_RESPONSE>[{"sum": 3}, "It is \\"noon\\".\\n"]</TOOL_RESPONSE>\n'
        '[11]Assistant\n<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>\n[12]\n'
        "[11]User\n<TOOL_RESPONSE>[12]</TOOL_RESPONSE>\n[11]Assistant\n<think>\n"
    )


MISCHIEF = [*TAGS, "<SPECIAL_11>", "<SPECIAL_12>", "<", "]", '"', "\\", "<b>", "\n"]
mischief = st.lists(st.sampled_from(MISCHIEF) | st.text(max_size=4), max_size=6).map("".join)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(mischief)
def test_no_text_within_json_is_a_tag(text: str) -> None:
    tool = Tool("add", text, {"type": "object", "description": text})
    shown = tools_text([tool])
    listed = shown.split("<AVAILABLE_TOOLS>")[1].split("</AVAILABLE_TOOLS>")[0]
    assert json.loads(listed) == [{"name": "add", "description": text, "parameters": tool.schema}]

    arguments = json.dumps({"a": text}, ensure_ascii=False)
    called = calls_text([ToolCall("add", arguments)])
    inside = called.removeprefix("<TOOLCALL>").removesuffix("</TOOLCALL>")
    assert json.loads(inside) == [{"name": "add", "arguments": {"a": text}}]

    returned = results_text([arguments, f"{text} is no JSON"])
    results = returned.removeprefix("<TOOL_RESPONSE>").removesuffix("</TOOL_RESPONSE>")
    assert json.loads(results) == [{"a": text}, f"{text} is no JSON"]

    for within in (listed, inside, results):
        assert not any(tag in within for tag in TAGS)
    for whole in (shown, called, returned):
        assert not CHAT.special_ids & set(CHAT.encode_plain(whole))


def test_what_is_no_tag_is_shown_as_it_was_written() -> None:
    html = '{"html": "<b>1 < 2</b>"}'
    assert results_text([html]) == f"<TOOL_RESPONSE>[{html}]</TOOL_RESPONSE>"
