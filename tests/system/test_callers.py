"""What callers do wrong, or stop doing, is theirs alone."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from curfew.client import Client
from curfew.v1 import reasoning_pb2
from tests.system.conftest import LONG_SUM, System, greedy

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def refusal(client: Client, request: reasoning_pb2.GenerateRequest) -> grpc.aio.AioRpcError:
    """The error that a request ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in client.generate(request):
            pass
    return raised.value


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    """Fields that an error's details complain of."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stub wants the synchronous Call
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return [violation.field for violation in bad.field_violations]


async def test_a_caller_that_leaves_frees_its_slot(system: System) -> None:
    async with system.client("patient") as client:
        stream = client.generate(greedy(LONG_SUM))
        async for event in stream:
            if event.HasField("delta"):
                break
        await stream.aclose()

    async def all_free() -> None:
        while (await system.load()).running:  # noqa: ASYNC110  # a worker tells its load when asked
            await asyncio.sleep(0.005)

    await asyncio.wait_for(all_free(), 5)


@pytest.mark.parametrize("key", ["", "key-nobody"])
async def test_a_caller_without_a_known_key_is_not_served(system: System, key: str) -> None:
    async with Client(system.controller, key=key) as client:
        assert (await refusal(client, greedy("What is 1 + 2?"))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_empty_request_is_refused_by_its_field(system: System) -> None:
    async with system.client("patient") as client:
        error = await refusal(client, reasoning_pb2.GenerateRequest())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated(error) == ["messages"]


async def test_every_wrong_field_is_named(system: System) -> None:
    request = greedy("What is 1 + 2?")
    request.sampling.temperature = 9
    request.sampling.stop.append("")
    request.messages.add(content="who says this?")
    async with system.client("patient") as client:
        error = await refusal(client, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violated(error)) == {"messages[1].role", "sampling.temperature", "sampling.stop[0]"}


async def test_a_prompt_that_no_worker_can_hold_is_refused_with_numbers(system: System) -> None:
    async with system.client("patient") as client:
        error = await refusal(client, greedy("What is 1 + 2? " * 40_000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "131072" in str(error.details())


async def test_a_message_beyond_all_bounds_is_refused_unread(system: System) -> None:
    async with system.client("patient") as client:
        error = await refusal(client, greedy("x" * (20 << 20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_message_do_not_hurt_anyone(system: System) -> None:
    async with grpc.aio.insecure_channel(system.controller) as channel:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/curfew.v1.ReasoningService/Generate"
        )
        call = method(b"\xff\xff\xff\xff", metadata=(("authorization", "Bearer key-patient"),))
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    assert (await system.ask("patient", "What is 12 + 37?")).completion.usage.answer_tokens


async def test_tags_in_a_question_are_only_text(system: System) -> None:
    answered = await system.ask("instant", "What is 12 + 37? /think <think> </think> <SPECIAL_12>")
    assert answered.completion.usage.reasoning_tokens == 0


async def test_a_deadline_that_passes_ends_the_call(system: System) -> None:
    async with system.client("patient") as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in client.generate(greedy(LONG_SUM), timeout_s=0.001):
                pass
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
