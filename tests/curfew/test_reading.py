"""What cannot be read is the caller's fault: told to the caller, not logged, and the server goes on."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from curfew.rpc.server import Server
from tests.curfew.test_calls import serving
from tests.fuzz import frames
from tests.fuzz.frames import Door

NOT_A_MESSAGE = b"\xff\xff"
UNARY = "/curfew.v1.ReasoningService/Plan"
STREAM = "/curfew.v1.ReasoningService/Generate"
HEALTH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def send(channel: grpc.aio.Channel, method: str) -> None:
    if method == UNARY:
        await channel.unary_unary(method, bytes, bytes)(NOT_A_MESSAGE)
    elif method == REFLECTION:
        await channel.stream_stream(method, bytes, bytes)(iter([NOT_A_MESSAGE])).read()
    else:
        await channel.unary_stream(method, bytes, bytes)(NOT_A_MESSAGE).read()


@pytest.mark.parametrize("method", [UNARY, STREAM, HEALTH, REFLECTION])
async def test_what_is_no_message_is_an_invalid_argument_and_is_not_logged(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (_, _, channel):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await send(channel, method)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details() == "the message is not of the method's type"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_method_that_is_no_text_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(max_message_bytes=1 << 20)
    address = await server.start("127.0.0.1:0", [])
    try:
        call = frames.whole_call(Door(address, "/grpc.health.v1.Hé/Check", b""), 1)
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(frames.opening() + call.replace("é".encode(), b"\xb3\xb3"))
        await asyncio.wait_for(reader.readuntil(b"grpc-status"), 5)
        writer.close()
        async with grpc.aio.insecure_channel(address) as channel:
            assert await channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)(b"")
    finally:
        await server.drain(0.0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
