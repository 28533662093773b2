"""Calls that come faster than a server takes them up."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import ExitStack
from typing import BinaryIO

import grpc
import pytest
from grpc_health.v1 import health_pb2

from curfew.rpc.server import Server
from tests.fuzz.frames import ACK, Door, Kind, frame, opening, whole_call

CHECK = "/grpc.health.v1.Health/Check"
CONNECTIONS, CALLS = 4, 1000
"""Of these gRPC by itself would keep 1000 to 3000 waiting, and drop others at random."""
MARK = b"the last"


def crowd(connection: socket.socket, address: str, *, taken_back: bool) -> None:
    """Makes calls, and waits until the server has heard of them all."""
    door = Door(address, CHECK, b"")
    with connection.makefile("rb") as received:
        connection.sendall(opening())
        while _frame(received)[:2] != (Kind.SETTINGS, 0):
            pass
        connection.sendall(frame(Kind.SETTINGS, ACK, 0))
        for number in range(CALLS):
            stream = 2 * number + 1
            connection.sendall(whole_call(door, stream))
            if taken_back:
                connection.sendall(frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", 8)))
        connection.sendall(frame(Kind.PING, 0, 0, MARK))
        while (heard := _frame(received)) != (Kind.PING, ACK, MARK):
            if heard[:2] == (Kind.PING, 0):
                connection.sendall(frame(Kind.PING, ACK, 0, heard[2]))


def _frame(received: BinaryIO) -> tuple[int, int, bytes]:
    """Kind, flags and content of the next."""
    head = received.read(9)
    return head[3], head[4], received.read(int.from_bytes(head[:3]))


@pytest.mark.parametrize("taken_back", [False, True])
async def test_a_crowd_on_some_connections_drops_no_call_of_another(taken_back: bool) -> None:
    server = Server(max_message_bytes=1 << 20)
    address = await server.start("127.0.0.1:0", [])
    with grpc.insecure_channel(address) as channel, ExitStack() as connections:
        grpc.channel_ready_future(channel).result(60)
        check = channel.unary_unary(
            CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        # The event loop stands still, and takes up none of them, until there is the first `await`.
        for _ in range(CONNECTIONS):
            host, _, port = address.rpartition(":")
            connection = connections.enter_context(socket.create_connection((host, int(port)), timeout=60))
            crowd(connection, address, taken_back=taken_back)
        calls = [check.future(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(30)]
        codes = await asyncio.to_thread(lambda: [call.code() for call in calls])
    await server.drain(0.0)
    assert codes == [grpc.StatusCode.OK] * len(calls)
