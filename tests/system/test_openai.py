"""OpenAI's own client, which checks every field of what it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    RateLimitError,
    UnprocessableEntityError,
)
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel

from curfew.v1 import worker_pb2
from tests.system.conftest import LONG_ANSWER, LONG_SUM, System

pytestmark = pytest.mark.asyncio(loop_scope="session")

SUM = "What is 12 + 37 + 45?"
ADD: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


def client(system: System, tenant: str = "patient", retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"http://{system.http}/v1",
        api_key=f"key-{tenant}",
        max_retries=retries,
        _strict_response_validation=True,
    )


async def model(openai: AsyncOpenAI) -> str:
    (found,) = (await openai.models.list()).data
    assert await openai.models.retrieve(found.id) == found
    return found.id


async def test_a_chat_is_answered_with_its_reasoning_and_exact_counts(system: System) -> None:
    async with client(system) as openai:
        answer = await openai.chat.completions.create(
            model=await model(openai), messages=[{"role": "user", "content": LONG_SUM}], temperature=0
        )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (LONG_ANSWER, "stop")
    extra: Any = choice.message.model_extra
    assert extra["reasoning_content"].startswith("12 + 37 = 49\n")
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    reasoning = usage.completion_tokens_details.reasoning_tokens
    assert reasoning is not None
    by_grpc = (await system.ask("patient", LONG_SUM)).completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, reasoning) == (
        by_grpc.prompt_tokens,
        by_grpc.output_tokens,
        by_grpc.reasoning_tokens,
    )
    told: Any = answer.model_extra
    assert (told["curfew"]["tenant"], told["curfew"]["kept"]) == ("patient", True)
    assert answer._request_id == told["curfew"]["request_id"]


async def test_a_chat_comes_as_a_stream(system: System) -> None:
    async with (
        client(system) as openai,
        openai.chat.completions.stream(
            model=await model(openai),
            messages=[{"role": "user", "content": LONG_SUM}],
            temperature=0,
            reasoning_effort="minimal",
            stream_options={"include_usage": True},
        ) as stream,
    ):
        async for _ in stream:
            pass
        answer = await stream.get_final_completion()
    assert (answer.choices[0].message.content or "").isdecimal()
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    reasoning = answer.usage.completion_tokens_details.reasoning_tokens
    assert reasoning is not None
    assert 0 < reasoning <= 13 + 12  # a sixteenth of 200, and the grace


async def test_a_response_comes_as_a_stream_with_the_reasoning_before_the_message(system: System) -> None:
    async with (
        client(system) as openai,
        openai.responses.stream(model=await model(openai), input=LONG_SUM, temperature=0) as stream,
    ):
        kinds = [event.type async for event in stream]
        answer = await stream.get_final_response()
    assert kinds.index("response.reasoning_text.delta") < kinds.index("response.output_text.delta")
    assert kinds[-1] == "response.completed"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == LONG_ANSWER
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 50


async def test_a_conversation_goes_on_with_what_a_response_held(system: System) -> None:
    async with client(system) as openai:
        name = await model(openai)
        first = await openai.responses.create(
            model=name, input=SUM, instructions="Add.", temperature=0, reasoning={"summary": "auto"}
        )
        turns: Any = [
            {"role": "user", "content": SUM},
            *(item.model_dump() for item in first.output),
            {"role": "user", "content": SUM},
        ]
        second = await openai.responses.create(model=name, input=turns, temperature=0)
        with pytest.raises(BadRequestError, match="no response is kept"):
            await openai.responses.create(model=name, input=SUM, previous_response_id=first.id)
    assert first.output_text == "94"
    assert first.output[0].type == "reasoning"
    assert first.output[0].summary[0].text.startswith("12 + 37 = 49")
    assert second.status == "completed"


async def test_a_tool_is_called_and_its_result_taken_back(system: System) -> None:
    async with client(system, "maker") as openai:
        name = await model(openai)
        messages: list[Any] = [{"role": "user", "content": SUM}]
        create: Any = openai.chat.completions.create
        options: dict[str, Any] = {
            "model": name,
            "tools": [ADD],
            "parallel_tool_calls": False,
            "temperature": 0,
        }
        asked = await create(messages=messages, tool_choice="required", **options)
        streamed = await create(messages=messages, tool_choice="required", stream=True, **options)
        pieces = [
            call
            async for chunk in streamed
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
        message = asked.choices[0].message
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        result = {"role": "tool", "tool_call_id": call.id, "content": "94"}
        final = await create(
            messages=[*messages, message.model_dump(), result], tool_choice="none", **options
        )
    assert asked.choices[0].finish_reason == "tool_calls"
    arguments = json.loads(call.function.arguments)
    assert arguments["a"] in (1, 2)
    assert arguments["b"] in (3, 4)
    assert (
        "".join(each.function.arguments or "" for each in pieces if each.function) == call.function.arguments
    )
    assert final.choices[0].finish_reason in ("stop", "length")


class Answer(BaseModel):
    """The form that an answer is held to."""

    sum: bool


async def test_an_answer_keeps_its_schema(system: System) -> None:
    async with client(system, "maker") as openai:
        name = await model(openai)
        chat = await openai.chat.completions.parse(
            model=name, messages=[{"role": "user", "content": SUM}], response_format=Answer, temperature=0
        )
        response = await openai.responses.parse(model=name, input=SUM, text_format=Answer, temperature=0)
    assert isinstance(chat.choices[0].message.parsed, Answer)
    assert response.output_parsed == chat.choices[0].message.parsed


async def test_a_deadline_is_said_in_a_header_or_in_the_body(system: System) -> None:
    async with client(system) as openai:
        name = await model(openai)
        for said in (
            {"extra_headers": {"x-curfew-deadline-ms": "2000"}},
            {"extra_body": {"curfew": {"deadline_ms": 2000, "labels": {"task": "sums"}}}},
        ):
            response: Any = await openai.responses.create(model=name, input=SUM, **said)
            assert response.curfew["deadline_ms"] == 2000


async def test_errors_are_those_of_the_api(system: System) -> None:
    messages: Any = [{"role": "user", "content": SUM}]
    async with client(system) as openai:
        name = await model(openai)
        with pytest.raises(NotFoundError) as missing:
            await openai.chat.completions.create(model="gpt-5", messages=messages)
        with pytest.raises(BadRequestError) as wrong:
            await openai.chat.completions.create(model=name, messages=messages, n=2)
    async with client(system, "nobody") as stranger:
        with pytest.raises(AuthenticationError) as unknown:
            await stranger.models.list()
    async with client(system, "strict") as hopeless:
        with pytest.raises(UnprocessableEntityError) as refused:
            await hopeless.chat.completions.create(model=name, messages=messages)
    found = [(error.value.code, error.value.param) for error in (missing, wrong, unknown, refused)]
    assert found == [
        ("model_not_found", None),
        (None, "n"),
        ("invalid_api_key", None),
        ("promise_cannot_be_kept", None),
    ]


async def test_the_client_comes_again_when_it_was_told_to(system: System) -> None:
    """A rate of two a second: of several at once, those that come too early are told when to come again."""
    async with client(system, "rationed") as openai:
        name = await model(openai)
        with pytest.raises(RateLimitError) as early:
            await asyncio.gather(*(openai.responses.create(model=name, input=SUM) for _ in range(3)))
        assert int(early.value.response.headers["retry-after"]) == 1
        patient = openai.with_options(max_retries=4)
        answers = await asyncio.gather(*(patient.responses.create(model=name, input=SUM) for _ in range(2)))
    assert all(answer.status == "completed" for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(system: System, stream: bool) -> None:
    async with client(system, "maker") as openai:
        name = await model(openai)

        async def ask() -> None:
            answer = await openai.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": LONG_SUM}],
                tools=[ADD],
                tool_choice="required",
                stream=stream,
            )
            if stream:
                async for _ in answer:  # type: ignore[union-attr]
                    pass

        asking = asyncio.create_task(ask())
        await _load(system, lambda load: load.running == 1)
        asking.cancel()
        await _load(system, lambda load: load.running == 0)
        with pytest.raises(asyncio.CancelledError):
            await asking


async def _load(system: System, holds: Callable[[worker_pb2.WorkerLoad], bool]) -> worker_pb2.WorkerLoad:
    """Returns once the worker's load is so."""
    async with asyncio.timeout(20):
        while True:
            if holds(load := await system.load()):
                return load


async def test_a_status_is_never_a_bare_text(system: System) -> None:
    async with client(system) as openai:
        with pytest.raises(APIStatusError) as nowhere:
            await openai.completions.create(model="model", prompt="x")
    assert (nowhere.value.status_code, nowhere.value.code) == (404, "unknown_url")
