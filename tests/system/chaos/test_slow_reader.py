"""Callers that stop reading, through a real controller and a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub
from tests.system.conftest import LONG_ANSWER, LONG_SUM, System, describe, greedy, running_system

SLOW = 16
TRANSPORT = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""One that reads ahead as little as it may, so that a caller who does not read is felt."""
MOST_GROWTH_MIB = 64.0
Call = grpc.aio.UnaryStreamCall[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]


def wordy() -> reasoning_pb2.GenerateRequest:
    """With so much to tell of each token that a stream is larger than what a transport holds."""
    request = greedy(LONG_SUM)
    request.sampling.top_logprobs = 20
    request.wishes.mode = pb.MODE_THINK
    return request


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def unread(call: Call) -> AsyncIterator[reasoning_pb2.GenerateResponse]:
    """What is left of a stream."""
    while isinstance(event := await call.read(), reasoning_pb2.GenerateResponse):
        yield event


async def is_idle(system: System) -> None:
    """Returns once nothing runs at the worker."""
    while (await describe(system.worker)).load.running:
        pass


async def test_who_stops_reading_slows_only_itself_and_costs_no_more_than_its_output(tmp_path: Path) -> None:
    async with running_system(tmp_path) as (system, _, controller), asyncio.timeout(90):
        assert (await system.ask("patient", LONG_SUM)).completion.usage.output_tokens
        before_mib = resident_mib(controller.process.pid)
        async with grpc.aio.insecure_channel(system.controller, options=TRANSPORT) as channel:
            stub = ReasoningServiceStub(channel)
            metadata = (("authorization", "Bearer key-patient"),)
            calls: list[Call] = [stub.Generate(wordy(), metadata=metadata) for _ in range(SLOW)]
            for call in calls:
                first = await call.read()
                assert isinstance(first, reasoning_pb2.GenerateResponse)
                assert first.HasField("plan")
            # Nobody reads on, and yet their slots become free, and others are answered.
            await is_idle(system)
            other = await system.ask("patient", LONG_SUM)
            growth_mib = resident_mib(controller.process.pid) - before_mib
            late = [[event async for event in unread(call)] for call in calls]
    assert LONG_ANSWER in "".join(event.delta.text for event in other.events)
    assert growth_mib < MOST_GROWTH_MIB
    tokens = [sum(len(event.delta.token_ids) for event in events) for events in late]
    assert tokens == [events[-1].completion.usage.output_tokens for events in late]
    assert sum(map(len, late)) < sum(tokens) / 2, "what was not read was merged"
