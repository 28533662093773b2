"""What surrounds every call: statuses for exceptions, and an end in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, invalid, reason
from curfew.rpc.server import Server
from curfew.v1 import reasoning_pb2 as pb
from curfew.v1.reasoning_pb2_grpc import (
    ReasoningServiceServicer,
    ReasoningServiceStub,
    add_ReasoningServiceServicer_to_server,
)

SERVICE = pb.DESCRIPTOR.services_by_name["ReasoningService"].full_name
PlanContext = Context[pb.PlanRequest, pb.PlanResponse]


class Planner(ReasoningServiceServicer):
    """Does what a test tells it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.waits_for: asyncio.Future[None] | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def Plan(self, request: pb.PlanRequest, context: PlanContext) -> pb.PlanResponse:
        self.begun.set()
        try:
            await self.go_on.wait()
            if self.waits_for is not None:
                await self.waits_for
        finally:
            self.ended.set()
        if self.error is not None:
            raise self.error
        return pb.PlanResponse(plan=pb.Plan(why="because"))


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Planner, Server, grpc.aio.Channel]]:
    servicer = Planner()  # type: ignore[abstract]  # without the other methods
    server = Server(max_message_bytes=1 << 20)
    add_ReasoningServiceServicer_to_server(servicer, server.grpc)
    address = await server.start("127.0.0.1:0", [SERVICE])
    async with grpc.aio.insecure_channel(address) as channel:
        yield servicer, server, channel
    await server.drain(0.0)


async def plan(channel: grpc.aio.Channel) -> pb.PlanResponse:
    return await ReasoningServiceStub(channel).Plan(pb.PlanRequest())


async def test_an_error_is_its_status_with_details() -> None:
    async with serving() as (planner, _, channel):
        planner.error = RpcError(grpc.StatusCode.NOT_FOUND, "gone", reason("GONE", where="nowhere", since=3))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plan(channel)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # the stub wants the synchronous Call
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "GONE",
        "curfew",
        {"where": "nowhere", "since": "3"},
    )


async def test_an_unforeseen_exception_is_logged_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (planner, _, channel):
        planner.error = KeyError("a secret")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plan(channel)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "a secret" in caplog.text


async def test_a_cancellation_that_is_not_its_callers_is_logged_and_ends_a_call_with_unavailable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (planner, _, channel):
        planner.waits_for = asyncio.get_running_loop().create_future()
        planner.waits_for.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plan(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "what a call waited for was cancelled" in caplog.text


async def test_a_caller_who_leaves_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (planner, _, channel):
        planner.go_on.clear()
        leaving = asyncio.create_task(plan(channel))
        await planner.begun.wait()
        leaving.cancel()
        await planner.ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert not caplog.records


async def test_a_unary_call_is_answered_while_the_server_drains() -> None:
    async with serving() as (planner, server, channel):
        planner.go_on.clear()
        first = asyncio.create_task(plan(channel))
        await planner.begun.wait()
        draining = asyncio.create_task(server.drain(3600.0))
        planner.begun.clear()
        second = asyncio.create_task(plan(channel))
        await planner.begun.wait()
        assert not draining.done()
        planner.go_on.set()
        assert (await first).plan.why == (await second).plan.why == "because"
        await draining


async def test_a_unary_call_beyond_the_grace_is_ended() -> None:
    async with serving() as (planner, server, channel):
        planner.go_on.clear()
        call = asyncio.create_task(plan(channel))
        await planner.begun.wait()
        await server.drain(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the server is shutting down",
    )


async def test_health_is_told_by_service_and_follows_the_server() -> None:
    async with serving() as (_, server, channel):
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for serving_now in (False, True, False):
            await server.set_serving(serving_now)
            for name in ("", SERVICE):
                response = await check(health_pb2.HealthCheckRequest(service=name))
                assert (response.status == health_pb2.HealthCheckResponse.SERVING) is serving_now
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_server_lists_its_services() -> None:
    async with serving() as (_, _, channel):
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        async for response in call:
            assert SERVICE in [service.name for service in response.list_services_response.service]
            break
        call.cancel()


async def test_an_address_in_use_is_refused_by_name() -> None:
    async with serving() as (_, server, channel):
        address = await Server(max_message_bytes=1).start("127.0.0.1:0", [])
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await Server(max_message_bytes=1).start(address, [])


def test_of_many_violations_the_first_are_told_each_to_a_length() -> None:
    error = invalid((f"field[{number}]", "x" * 1000) for number in range(100))
    bad = error.details[0]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [violation.field for violation in bad.field_violations] == [f"field[{n}]" for n in range(8)]
    assert all(len(violation.description) < 160 for violation in bad.field_violations)
    assert error.message.endswith("; and 92 more")
    assert len(error.status_bytes()) < 4000
