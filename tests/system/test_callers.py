"""What callers do wrong, or stop doing, is theirs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from curfew import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Delta,
    InvalidRequest,
    Message,
    Overloaded,
    Role,
    Sampling,
    Unauthenticated,
)
from tests.system.conftest import LONG_SUM, System

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def patient(system: System) -> AsyncIterator[AsyncClient]:
    """A client of the tenant with the most time."""
    async with AsyncClient(system.controller, key="key-patient") as client:
        yield client


async def test_a_caller_that_leaves_frees_its_slot(system: System, patient: AsyncClient) -> None:
    async with patient.generate(LONG_SUM) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                break

    async def all_free() -> None:
        while (await system.load()).running:  # noqa: ASYNC110  # a worker tells its load when asked
            await asyncio.sleep(0.005)

    await asyncio.wait_for(all_free(), 5)


@pytest.mark.parametrize("key", ["", "key-nobody"])
async def test_a_caller_without_a_known_key_is_not_served(system: System, key: str) -> None:
    async with AsyncClient(system.controller, key=key) as client:
        with pytest.raises(Unauthenticated):
            await client.ask("What is 1 + 2?")


async def test_an_empty_request_is_refused_by_its_field(patient: AsyncClient) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await patient.ask([])
    assert [violation.field for violation in refused.value.violations] == ["messages"]


async def test_every_wrong_field_is_named(patient: AsyncClient) -> None:
    turns = [Message(Role.USER, "What is 1 + 2?"), Message(Role.ASSISTANT, "3")]
    with pytest.raises(InvalidRequest) as refused:
        await patient.ask(turns, sampling=Sampling(temperature=9, stop=("",)))
    fields = {violation.field for violation in refused.value.violations}
    assert fields == {"messages[1].role", "sampling.temperature", "sampling.stop[0]"}


async def test_a_prompt_that_no_worker_can_hold_is_refused_with_numbers(patient: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="131072"):
        await patient.ask("What is 1 + 2? " * 40_000)


async def test_a_message_beyond_all_bounds_is_refused_unread(patient: AsyncClient) -> None:
    with pytest.raises(Overloaded) as refused:
        await patient.ask("x" * (20 << 20))
    assert refused.value.retry_after_s is None


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


async def test_a_timeout_that_passes_ends_the_call(patient: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await patient.ask(LONG_SUM, timeout_s=0.001)


async def test_a_plan_is_what_generate_would_do_and_runs_nothing(patient: AsyncClient) -> None:
    planned = await patient.plan(LONG_SUM, max_reasoning_tokens=20)
    done = (await patient.ask(LONG_SUM, max_reasoning_tokens=20)).plan
    assert (planned.mode, planned.budget.reasoning_tokens) == (done.mode, done.budget.reasoning_tokens)
    assert planned.budget.reasoning_tokens <= 20
    assert planned.deadline_s == 10.0


async def test_a_conversation_goes_on(patient: AsyncClient) -> None:
    greedy = Sampling(temperature=0)
    first = await patient.ask("What is 12 + 37?", sampling=greedy)
    turns = [Message(Role.USER, "What is 12 + 37?"), Message(Role.ASSISTANT, first.answer)]
    second = await patient.ask([*turns, Message(Role.USER, "What is 1 + 2?")], sampling=greedy)
    assert second.completion.usage.prompt_tokens > first.completion.usage.prompt_tokens


async def test_the_callers_own_deadline_is_promised_and_reported(patient: AsyncClient) -> None:
    reply = await patient.ask(LONG_SUM, deadline_s=4.0)
    assert reply.plan.deadline_s == 4.0
    (deadline,) = reply.completion.objectives
    assert (deadline.promised_s, deadline.kept) == (4.0, reply.completion.kept)


async def test_the_client_without_asyncio_streams_the_same(system: System) -> None:
    def ask() -> None:
        with (
            Client(system.controller, key="key-patient") as client,
            client.generate("What is 12 + 37?", sampling=Sampling(temperature=0)) as stream,
        ):
            reasoning, answer = "".join(stream.reasoning_text()), "".join(stream.answer_text())
            reply = stream.reply()
        assert (reasoning, answer) == (reply.reasoning, reply.answer)
        assert answer == "49"

    await asyncio.to_thread(ask)
