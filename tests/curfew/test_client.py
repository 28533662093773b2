"""The client against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from curfew.cli.main import explain
from curfew.client import Client, ask
from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, retry_after
from curfew.rpc.server import Server
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceServicer, add_ReasoningServiceServicer_to_server

GenerateContext = Context[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]


class Endless(ReasoningServiceServicer):
    """Answers without end, unless told to refuse. Notes the key of each call, and that it was left."""

    def __init__(self) -> None:
        self.keys: list[str | bytes] = []
        self.left = asyncio.Event()

    async def Generate(
        self, request: reasoning_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        self.keys += [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        if request.messages[0].content == "refuse":
            raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after(1.5))
        try:
            while True:
                yield reasoning_pb2.GenerateResponse(delta=pb.Delta(phase=pb.PHASE_ANSWER, text="x"))
                await asyncio.sleep(0)
        finally:
            self.left.set()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Endless, str]]:
    servicer = Endless()  # type: ignore[abstract]  # without the other methods
    server = Server(max_message_bytes=1 << 20)
    add_ReasoningServiceServicer_to_server(servicer, server.grpc)
    yield servicer, await server.start("127.0.0.1:0", [])
    await server.drain(0.0)


async def test_a_stream_that_is_closed_ends_the_request() -> None:
    async with serving() as (servicer, address), Client(address, key="k") as client:
        events = client.generate(ask("hello"))
        assert (await anext(events)).delta.text == "x"
        await events.aclose()
        await servicer.left.wait()
        assert servicer.keys == ["Bearer k"]


async def test_a_task_that_is_cancelled_ends_its_request() -> None:
    async with serving() as (servicer, address), Client(address, key="k") as client:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in client.generate(ask("hello")):
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        await servicer.left.wait()


async def test_a_timeout_ends_the_request() -> None:
    async with serving() as (servicer, address), Client(address, key="k") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.generate(ask("hello"), timeout_s=0.2):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await servicer.left.wait()


async def test_an_error_is_explained_in_a_line_with_when_to_try_again() -> None:
    async with serving() as (_, address), Client(address, key="k") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(client.generate(ask("refuse")))
        assert explain(caught.value) == "RESOURCE_EXHAUSTED: full (try again in 1.5 s)"


async def test_a_key_that_no_header_can_carry_is_refused() -> None:
    for key in ("é", "a\nb"):
        with pytest.raises(ValueError, match="visible ASCII"):
            Client("127.0.0.1:1", key=key)


def test_a_question_may_have_a_system_text() -> None:
    assert [message.role for message in ask("q").messages] == [pb.ROLE_USER]
    request = ask("q", system="s")
    assert [(m.role, m.content) for m in request.messages] == [(pb.ROLE_SYSTEM, "s"), (pb.ROLE_USER, "q")]
