"""What one caller, known or not, can cost."""

from __future__ import annotations

import asyncio
import struct

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from controller.desk import Desk
from controller.service.server import MAX_MESSAGE_BYTES
from curfew.v1 import generation_pb2, reasoning_pb2
from tests.controller.fake_worker import FakeWorker
from tests.controller.service.harness import ask, controller, key
from tests.controller.service.test_limits import limited

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def status(call: grpc.aio.Call) -> grpc.StatusCode:
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def test_a_strangers_message_is_never_received() -> None:
    too_large = ask("x" * (MAX_MESSAGE_BYTES + 1))
    async with controller([], ready=False) as door:
        # Only who reads a message finds that it is too large.
        known = door.call("analyst", too_large)
        assert await status(known) is EXHAUSTED
        for metadata in (None, (("authorization", "Bearer nobody"),), (("authorization", "Basic a"),)):
            for method in (door.reasoning.Generate, door.reasoning.Plan):
                message = too_large if method is door.reasoning.Generate else None
                request = message or reasoning_pb2.PlanRequest(request=too_large)
                call = method(request, metadata=metadata, timeout=20)  # type: ignore[arg-type]
                assert await status(call) is UNAUTHENTICATED
                assert dict(await call.trailing_metadata())["grpc-status-details-bin"]


async def test_headers_are_bounded() -> None:
    metadata = (*key("analyst"), ("x-filler", "x" * 20_000))
    async with FakeWorker() as worker, controller([worker.address]) as door:
        refused = door.reasoning.Generate(ask(), metadata=metadata, timeout=20)
        assert await status(refused) is EXHAUSTED
        assert worker.requests == []
        assert (await door.generate("analyst")).error is None


async def test_streams_and_headers_of_a_connection_are_bounded_as_its_first_frame_says() -> None:
    """SETTINGS of HTTP/2 (RFC 9113, section 6.5): nine bytes of frame header, then pairs of id and value."""
    async with controller([], ready=False) as door:
        host, _, port = door.addresses.listen.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            # gRPC speaks when it has heard the preface and the client's own SETTINGS, which may be empty.
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            header = await asyncio.wait_for(reader.readexactly(9), 10)
            payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
        finally:
            writer.close()
            await writer.wait_closed()
    assert header[3] == 4
    settings = dict(struct.iter_unpack(">HI", payload))
    max_concurrent_streams, max_header_list_size = settings[3], settings[6]
    assert max_concurrent_streams == 1024
    assert max_header_list_size == 16 << 10


async def test_what_comes_past_a_limit_costs_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[str] = []
    arrive = Desk.arrive

    def counted(desk: Desk, *arguments: object) -> object:
        decided.append("one")
        return arrive(desk, *arguments)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Desk, "arrive", counted)
    async with FakeWorker() as worker, controller([worker.address], limited("rate: 2/h, burst: 2")) as door:
        answers = [await door.generate("analyst") for _ in range(5)]
    assert [a.error.code() for a in answers if a.error is not None] == [EXHAUSTED] * 3
    assert len(decided) == 2


async def test_plans_keep_the_tenants_rate_too() -> None:
    """Counted apart: who asks for a plan first has not used up an answer."""
    async with FakeWorker() as worker, controller([worker.address], limited("rate: 2/h, burst: 2")) as door:
        codes = [
            await status(
                door.reasoning.Plan(
                    reasoning_pb2.PlanRequest(request=ask()), metadata=key("analyst"), timeout=20
                )
            )
            for _ in range(3)
        ]
        assert codes == [grpc.StatusCode.OK, grpc.StatusCode.OK, EXHAUSTED]
        assert [(await door.generate("analyst")).error for _ in range(2)] == [None, None]


async def test_no_wish_raises_what_the_policy_grants() -> None:
    wishes = reasoning_pb2.Wishes(
        mode=generation_pb2.MODE_THINK,
        max_reasoning_tokens=10**6,
        max_answer_tokens=10**6,
        max_output_tokens=10**6,
        deadline=Duration(seconds=3600),
        effort=reasoning_pb2.EFFORT_HIGH,
    )
    async with FakeWorker() as worker, controller([worker.address]) as door:
        answer = await door.generate("support", ask(wishes=wishes))
    plan = answer.plan
    assert plan.budget.reasoning_tokens <= 40
    assert plan.budget.answer_tokens == 12
    assert plan.deadline == Duration(nanos=600_000_000)


async def test_no_request_can_say_whose_it_is() -> None:
    """Neither a label nor other metadata makes a request another tenant's."""
    metadata = (*key("support"), ("tenant", "analyst"), ("x-tenant", "analyst"))
    async with FakeWorker() as worker, controller([worker.address]) as door:
        request = ask(labels={"tenant": "analyst"})
        call = door.reasoning.Generate(request, metadata=metadata, timeout=20)
        first = await call.read()
        call.cancel()
    assert isinstance(first, reasoning_pb2.GenerateResponse)
    assert first.plan.tenant == "support"
    for message in (
        reasoning_pb2.GenerateRequest,
        reasoning_pb2.PlanRequest,
        reasoning_pb2.ReportOutcomeRequest,
    ):
        assert not {"tenant", "priority", "weight"} & {field.name for field in message.DESCRIPTOR.fields}
