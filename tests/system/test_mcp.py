"""`curfew mcp`, by the published client: in memory, over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer

from curfew.client import AsyncClient
from curfew.mcp.clients import Clients
from curfew.mcp.server import build
from tests.system.conftest import LONG_SUM, System

pytestmark = pytest.mark.asyncio(loop_scope="session")

CURFEW = str(Path(sys.executable).with_name("curfew"))


@asynccontextmanager
async def tool(system: System, tenant: str = "patient") -> AsyncIterator[MCPServer[None]]:
    async with Clients(lambda key: AsyncClient(system.controller, key=key), f"key-{tenant}") as clients:
        yield build(clients)


async def test_the_tool_says_what_it_takes_and_what_it_returns(system: System) -> None:
    async with tool(system) as server, Client(server) as agent:
        (found,) = (await agent.list_tools()).tools
    assert found.name == "reason"
    assert set(found.input_schema["properties"]) == {"question", "deadline_ms", "effort"}
    assert found.input_schema["required"] == ["question"]
    assert found.output_schema is not None
    assert {"answer", "reasoning", "plan", "kept"} <= set(found.output_schema["properties"])


async def test_an_agent_says_how_long_it_can_wait(system: System) -> None:
    async with tool(system) as server, Client(server) as agent:
        result = await agent.call_tool("reason", {"question": LONG_SUM, "deadline_ms": 8000})
        brief = await agent.call_tool("reason", {"question": LONG_SUM, "effort": "none"})
    told: Any = result.structured_content
    assert not result.is_error
    assert told["reasoning"].startswith("12 + 37 = ")
    assert told["plan"]["deadline_ms"] == 8000
    assert isinstance(told["kept"], bool)
    at_once: Any = brief.structured_content
    assert (at_once["plan"]["mode"], at_once["reasoning"], at_once["reasoning_end"]) == (
        "no_think",
        "",
        "none",
    )


async def test_what_is_refused_is_told_in_words(system: System) -> None:
    async with tool(system, "nobody") as server, Client(server) as agent:
        stranger = await agent.call_tool("reason", {"question": "What is 12 + 37?"})
        wrong = await agent.call_tool("reason", {"question": "What is 12 + 37?", "deadline_ms": -1})
    async with tool(system, "strict") as server, Client(server) as agent:
        refused = await agent.call_tool("reason", {"question": "What is 12 + 37?"})
    texts = [result.content[0].text for result in (stranger, wrong, refused)]  # type: ignore[union-attr]
    assert all(result.is_error for result in (stranger, wrong, refused))
    assert "the API key is not known" in texts[0]
    assert "deadline_ms" in texts[1]
    assert "1 ms at p95" in texts[2]


async def test_progress_is_told_while_the_model_thinks(system: System) -> None:
    notes: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        notes.append((progress, total, message))

    async with tool(system, "maker") as server, Client(server) as agent:
        while not notes:  # the model may think less than a note's time
            await agent.call_tool("reason", {"question": LONG_SUM}, progress_callback=note)
    progress, total, message = notes[0]
    assert total is not None
    assert 0 < progress <= total
    assert message is not None
    assert message.startswith(("thinking, ", "answering, "))


async def test_a_process_serves_one_agent_on_standard_input_and_output(system: System) -> None:
    arguments = ["mcp", "--address", system.controller, "--key", "key-patient"]
    async with Client(StdioServerParameters(command=CURFEW, args=arguments)) as agent:
        result = await agent.call_tool("reason", {"question": LONG_SUM})
        told: Any = result.structured_content
        assert told["reasoning_tokens"] > 0
        await _leaves(agent, system)


async def test_a_process_serves_agents_over_http_in_the_name_of_their_keys(system: System) -> None:
    arguments = ["mcp", "--transport", "http", "--listen", "127.0.0.1:0", "--address", system.controller]
    process = await asyncio.create_subprocess_exec(CURFEW, *arguments, stdout=PIPE)
    try:
        assert process.stdout is not None
        url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().removeprefix("ready: ").strip()
        async with (
            httpx2.AsyncClient(headers={"authorization": "Bearer key-patient"}) as own,
            Client(streamable_http_client(url, http_client=own)) as agent,
        ):
            result = await agent.call_tool("reason", {"question": LONG_SUM})
            told: Any = result.structured_content
            assert told["reasoning_tokens"] > 0
            await _leaves(agent, system)
        async with Client(url) as stranger:
            refused = await stranger.call_tool("reason", {"question": LONG_SUM})
        assert refused.is_error
        assert "no API key" in str(refused.content)
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) in (0, -15)


async def _leaves(agent: Client, system: System) -> None:
    """An agent that no longer waits frees its slot."""
    asking = asyncio.create_task(agent.call_tool("reason", {"question": LONG_SUM}))
    while (await system.load()).running == 0:
        if asking.done():
            asking = asyncio.create_task(agent.call_tool("reason", {"question": LONG_SUM}))
    asking.cancel()
    async with asyncio.timeout(20):
        while (await system.load()).running:
            pass
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_key_that_strangers_could_use_is_refused_at_the_start() -> None:
    for arguments, said in (
        (("--key", "x"), "leave out the key"),
        ((), "give --insecure"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(CURFEW, "mcp", "--transport", "http", "--listen", "0.0.0.0:0", *arguments), stderr=PIPE
        )
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 2
        assert said in " ".join(err.decode().replace("│", " ").split())
