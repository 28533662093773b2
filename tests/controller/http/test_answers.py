"""What the HTTP door answers, by a worker that says what the test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from curfew.v1 import generation_pb2 as pb
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.http.door import CHAT, PLAIN, RESPONSES, House, events, house
from tests.controller.service.harness import controller

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = (
    pb.ToolCallDelta(index=0, id="call_1", name="add"),
    pb.ToolCallDelta(index=0, arguments_json='{"a": 1, '),
    pb.ToolCallDelta(index=0, arguments_json='"b": 2}'),
    pb.ToolCallDelta(index=1, id="call_2", name="add", arguments_json="{}"),
)


async def test_wishes_reach_the_plan() -> None:
    def planned(response: httpx.Response) -> dict[str, Any]:
        told: dict[str, Any] = response.json()["curfew"]
        return told

    async with house() as door:
        free = planned(await door.post(CHAT))
        assert (free["mode"], free["budget"]["reasoning_tokens"], free["deadline_ms"]) == (
            "think",
            96,
            10_000,
        )
        wishes: list[tuple[str, dict[str, object]]] = [
            (CHAT, {"reasoning_effort": "low"}),
            (RESPONSES, {"reasoning": {"effort": "low"}}),
            (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 50}}),
            (RESPONSES, {"thinking": {"budget_tokens": 50}}),
        ]
        for path, fields in wishes:
            assert planned(await door.post(path, **fields))["budget"]["reasoning_tokens"] == 50
        refusals: list[dict[str, object]] = [
            {"reasoning_effort": "none"},
            {"thinking": {"type": "disabled"}},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"max_tokens": 20},
        ]
        for fields in refusals:
            assert planned(await door.post(CHAT, **fields))["mode"] == "no_think"
        capped = planned(await door.post(CHAT, max_completion_tokens=60, max_tokens=9999))
        assert capped["budget"]["reasoning_tokens"] + capped["budget"]["grace_tokens"] == 60 - 12 - 16
        short = planned(await door.post(RESPONSES, curfew={"max_answer_tokens": 2}))
        assert short["budget"]["answer_tokens"] == 2
        hurried = await door.client.post(
            CHAT,
            json={
                "model": "fake",
                "messages": [{"role": "user", "content": "?"}],
                "curfew": {"deadline_ms": 9000},
            },
            headers={"x-curfew-deadline-ms": "3000.5"},
        )
        assert planned(hurried)["deadline_ms"] == 3000.5


async def test_a_wish_is_never_dearer_than_the_policy() -> None:
    async with house(tenant="support") as door:
        response = await door.post(
            CHAT,
            reasoning_effort="max",
            thinking={"type": "enabled", "budget_tokens": 10_000},
            max_tokens=100_000,
            curfew={"deadline_ms": 86_400_000},
        )
    plan = response.json()["curfew"]
    assert plan["budget"]["reasoning_tokens"] <= 40
    assert plan["deadline_ms"] == 600


async def test_labels_choose_the_rule() -> None:
    policy = """\
apiVersion: curfew/v1
tenants:
  - name: analyst
    key: {env: ANALYST}
    rules: [{match: {task: triage}, mode: no_think}]
"""
    async with house(policy=policy) as door:
        response = await door.post(RESPONSES, curfew={"labels": {"task": "triage"}})
    assert response.json()["curfew"]["rule"] == "tenants[0].rules[0]"


async def test_the_model_that_is_asked_for_answers() -> None:
    async with (
        FakeWorker(Script(answer="small"), model="nano") as nano,
        FakeWorker(Script(answer="large"), model="super") as large,
        controller([nano.address, large.address], http="127.0.0.1:0") as door,
        httpx.AsyncClient(
            base_url=f"http://{door.addresses.http}", headers={"authorization": "Bearer a"}
        ) as client,
    ):
        answers = {}
        for name in ("nano", "super"):
            asked = PLAIN[CHAT] | {"model": name}
            # Until the controller has heard of both.
            while (response := await client.post(CHAT, json=asked)).status_code in (404, 503):
                pass
            answers[name] = response.json()["choices"][0]["message"]["content"]
        listed = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["nano", "super"]
    assert answers == {"nano": "small", "super": "large"}


async def test_sampling_and_turns_reach_the_worker() -> None:
    async with house() as door:
        response = await door.post(
            CHAT,
            messages=[
                {"role": "system", "content": "a"},
                {"role": "developer", "content": [{"type": "text", "text": "b"}]},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d", "reasoning_content": "never mind"},
                {"role": "user", "content": [{"type": "text", "text": "e"}, {"type": "text", "text": "f"}]},
            ],
            temperature=0,
            top_p=0.5,
            top_k=7,
            seed=-1,
            stop="END",
        )
        assert response.status_code == 200
        (sent,) = door.worker.requests
    assert [(turn.role, turn.content) for turn in sent.messages] == [
        (pb.ROLE_SYSTEM, "a\n\nb"),
        (pb.ROLE_USER, "c"),
        (pb.ROLE_ASSISTANT, "d"),
        (pb.ROLE_USER, "ef"),
    ]
    assert sent.sampling == pb.SamplingParams(
        temperature=0.0, top_p=0.5, top_k=7, seed=2**64 - 1, stop=["END"]
    )


async def test_tools_and_formats_reach_the_worker() -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    async with house() as door:
        await door.post(CHAT, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "add"}})
        await door.post(
            RESPONSES,
            tools=[{"type": "function", "name": "add", "description": "Adds."}],
            parallel_tool_calls=False,
        )
        await door.post(
            CHAT, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        )
        await door.post(RESPONSES, text={"format": {"type": "json_schema", "name": "s", "schema": schema}})
        await door.post(CHAT, response_format={"type": "json_object"})
        await door.post(CHAT, response_format={"type": "text"})
        named, single, chat, responses, anything, free = door.worker.requests
    assert named.tools == [pb.Tool(name="add", parameters_json_schema='{"type": "object"}')]
    assert named.tool_choice == pb.ToolChoice(kind=pb.ToolChoice.KIND_REQUIRED, name="add")
    assert single.tools == [pb.Tool(name="add", description="Adds.")]
    assert single.tool_choice == pb.ToolChoice(single=True)
    expected = '{"type": "object", "properties": {"sum": {"type": "integer"}}}'
    assert chat.answer_format.json_schema == responses.answer_format.json_schema == expected
    assert anything.answer_format.json_schema == '{"type": "object"}'
    assert not free.HasField("answer_format")


async def test_usage_is_exact_and_comes_last_in_a_stream_that_asks_for_it() -> None:
    async with house(Script(reasoning=150)) as door:
        whole = (await door.post(CHAT)).json()
        silent = events((await door.post(CHAT, stream=True)).text)
        told = events((await door.post(CHAT, stream=True, stream_options={"include_usage": True})).text)
        response = (await door.post(RESPONSES)).json()
    usage = whole["usage"]
    assert whole["curfew"]["reasoning_end"] == "budget"
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 106  # 96, and 10 % grace
    assert usage["completion_tokens"] == 106 + 3 + 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert not any("usage" in chunk for chunk in silent)
    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert (told[-1]["choices"], told[-1]["usage"]) == ([], usage)
    assert response["usage"]["output_tokens"] == usage["completion_tokens"]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 106}


async def test_a_stream_of_chat_says_what_the_whole_says() -> None:
    async with house(Script(reasoning=5)) as door:
        whole = (await door.post(CHAT)).json()
        response = await door.post(CHAT, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    chunks: list[Any] = events(response.text)
    assert chunks[0]["curfew"]["request_id"] == response.headers["x-request-id"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"] == "it is 42"
    last = chunks[-1]
    assert (last["choices"][0]["finish_reason"], last["curfew"]["kept"]) == ("stop", True)


@pytest.mark.parametrize("summary", [None, "detailed"])
async def test_a_stream_of_responses_builds_what_the_whole_says(summary: str | None) -> None:
    fields: dict[str, object] = {"reasoning": {"summary": summary}, "tools": None}
    async with house(Script(reasoning=5, calls=CALL)) as door:
        whole = (await door.post(RESPONSES, **fields)).json()
        response = await door.post(RESPONSES, stream=True, **fields)
    named = [
        line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")
    ]
    told: list[Any] = events(response.text)
    assert [event["type"] for event in told] == named
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert named[:2] == ["response.created", "response.in_progress"]
    assert named[-1] == "response.completed"
    built: dict[int, Any] = {}
    for event in told:
        if event["type"].endswith(".delta"):
            built[event["output_index"]] = built.get(event["output_index"], "") + event["delta"]
    reasoning, message, first, second = told[-1]["response"]["output"]
    parts = reasoning["summary"] if summary else reasoning["content"]
    assert built == {
        0: parts[0]["text"],
        1: message["content"][0]["text"],
        2: first["arguments"],
        3: second["arguments"],
    }
    assert (first["name"], first["arguments"]) == ("add", '{"a": 1, "b": 2}')
    assert first["call_id"] != second["call_id"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]
    for item in (*whole["output"], *done):
        assert item.pop("id")
        item.pop("call_id", None)
    assert done == whole["output"]
    assert reasoning["type"] == "reasoning"
    assert bool(summary) == ("content" not in reasoning)


async def test_calls_of_tools_come_whole_and_in_pieces() -> None:
    async with house(Script(reasoning=2, answer="", calls=CALL)) as door:
        choice = (await door.post(CHAT, tools=TOOLS)).json()["choices"][0]
        chunks: list[Any] = events((await door.post(CHAT, tools=TOOLS, stream=True)).text)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    whole = choice["message"]["tool_calls"]
    assert [call["function"] for call in whole] == [
        {"name": "add", "arguments": '{"a": 1, "b": 2}'},
        {"name": "add", "arguments": "{}"},
    ]
    assert whole[0]["type"] == "function"
    assert whole[0]["id"] != whole[1]["id"]
    pieces = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    begun = [piece for piece in pieces if "id" in piece]
    assert [(piece["index"], piece["type"], piece["function"]["name"]) for piece in begun] == [
        (0, "function", "add"),
        (1, "function", "add"),
    ]
    assert (
        "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 0)
        == '{"a": 1, "b": 2}'
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_what_turns_out_to_be_no_call_is_never_made() -> None:
    void = (pb.MalformedToolCall(index=0, text='{"a": 1', why="is no JSON"),)
    async with house(Script(reasoning=2, answer="", calls=CALL[:2], malformed=void)) as door:
        chat = (await door.post(CHAT, tools=TOOLS)).json()
        response = (await door.post(RESPONSES)).json()
        chat_stream = await door.post(CHAT, tools=TOOLS, stream=True)
        response_stream = await door.post(RESPONSES, stream=True)
    assert "tool_calls" not in chat["choices"][0]["message"]
    assert chat["curfew"]["malformed_tool_calls"] == [{"index": 0, "text": '{"a": 1', "why": "is no JSON"}]
    assert all(item["type"] != "function_call" for item in response["output"])
    chat_error: Any = events(chat_stream.text)[-1]
    assert chat_error["error"]["code"] == "malformed_tool_call"
    assert "[DONE]" not in chat_stream.text
    failed: Any = events(response_stream.text)[-1]
    assert failed["type"] == "response.failed"
    assert (
        failed["response"]["error"]["message"] == "call 0 of this answer is none, do not make it: is no JSON"
    )


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_leaves_frees_its_slot(path: str, stream: bool) -> None:
    async with house(Script(pause_after=5)) as door:
        asking = asyncio.create_task(_read(door, path, stream))
        await asyncio.wait_for(door.worker.paused.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(door.worker.idle.wait(), 10)
        assert door.worker.cancelled == 1
        with pytest.raises(asyncio.CancelledError):
            await asking


async def _read(door: House, path: str, stream: bool) -> None:
    response = await door.post(path, stream=stream)
    assert response.status_code == 200
