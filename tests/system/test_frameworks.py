"""The agent frameworks that other teams use, against a running system."""

from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from agents.items import ReasoningItem, ToolCallOutputItem
from agents.models.interface import Model
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import SecretStr
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.system.conftest import LONG_ANSWER, LONG_SUM, System

pytestmark = pytest.mark.asyncio(loop_scope="session")

RUN = RunConfig(tracing_disabled=True)  # it would send traces elsewhere


async def served_model(openai: AsyncOpenAI) -> str:
    return (await openai.models.list()).data[0].id


def client(system: System, tenant: str = "patient") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://{system.http}/v1", api_key=f"key-{tenant}", max_retries=0)


@pytest.mark.parametrize("kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
async def test_openai_agents_run_a_tool_and_show_the_reasoning(
    system: System, kind: type[OpenAIChatCompletionsModel | OpenAIResponsesModel]
) -> None:
    called: list[int] = []

    @function_tool
    def half(number: bool) -> str:
        """Halves a number."""
        called.append(number)
        return "47"

    async with client(system, "maker") as openai:
        model: Model = kind(await served_model(openai), openai)
        settings = ModelSettings(
            temperature=0,
            tool_choice="required",
            parallel_tool_calls=False,
            reasoning=Reasoning(effort="high"),
        )
        agent = Agent(name="adder", instructions="Add.", model=model, model_settings=settings, tools=[half])
        result = await Runner.run(agent, LONG_SUM, run_config=RUN)
    assert len(called) == 1
    assert any(isinstance(item, ToolCallOutputItem) and item.output == "47" for item in result.new_items)
    assert any(isinstance(item, ReasoningItem) for item in result.new_items)
    assert result.context_wrapper.usage.output_tokens_details.reasoning_tokens > 0


async def test_openai_agents_stream(system: System) -> None:
    async with client(system) as openai:
        model = OpenAIResponsesModel(await served_model(openai), openai)
        agent = Agent(name="adder", model=model, model_settings=ModelSettings(temperature=0))
        result = Runner.run_streamed(agent, LONG_SUM, run_config=RUN)
        kinds = [
            event.data.type async for event in result.stream_events() if event.type == "raw_response_event"
        ]
    assert result.final_output == LONG_ANSWER
    assert "response.reasoning_text.delta" in kinds


@pytest.mark.parametrize("kind", [OpenAIChatModel, PydanticResponsesModel])
async def test_pydantic_ai_keeps_thinking_apart_from_the_answer(
    system: System, kind: type[OpenAIChatModel | PydanticResponsesModel]
) -> None:
    async with client(system) as openai:
        model = kind(await served_model(openai), provider=OpenAIProvider(openai_client=openai))
        agent: PydanticAgent[None, str] = PydanticAgent(
            model, instructions="Add.", model_settings={"temperature": 0}
        )
        result = await agent.run("What is 12 + 37 + 45?")
        async with agent.run_stream("What is 12 + 37 + 45?") as streamed:
            text = await streamed.get_output()
    assert result.output == text
    thoughts = [
        part for message in result.all_messages() for part in message.parts if isinstance(part, ThinkingPart)
    ]
    assert thoughts
    assert result.usage.details["reasoning_tokens"] > 0


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain_invokes_and_streams(system: System, responses: bool) -> None:
    async with client(system) as openai:
        name = await served_model(openai)
    reasoning: dict[str, Any] = {"reasoning": {"effort": "high", "summary": "detailed"}} if responses else {}
    chat = ChatOpenAI(
        model=name,
        base_url=f"http://{system.http}/v1",
        api_key=SecretStr("key-patient"),
        temperature=0,
        use_responses_api=responses,
        stream_usage=True,
        max_retries=0,
        **reasoning,
    )
    answer = await chat.ainvoke(LONG_SUM)
    streamed = None
    async for chunk in chat.astream(LONG_SUM):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    for message in (answer, streamed):
        assert isinstance(message, AIMessage)
        assert message.text == LONG_ANSWER
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_token_details"]["reasoning"] > 50
        if responses:
            thoughts = [block for block in message.content_blocks if block["type"] == "reasoning"]
            assert thoughts[0]["reasoning"].startswith("12 + 37 = 49")
