"""Real workers that announce themselves, hang and go."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from curfew.processes import Service, start_service
from curfew.v1 import generation_pb2 as pb
from tests.system.conftest import (
    LONG_SUM,
    LOOPBACK,
    MODEL,
    Answered,
    Caller,
    describe,
    greedy,
    write_policy,
)

STOP_AFTER = 12
"""Events that the caller has read by then."""
STEP_MS = 10


@asynccontextmanager
async def announced(directory: Path, workers: int) -> AsyncIterator[tuple[Service, dict[str, Service]]]:
    """A controller that was told of no worker, and workers, by address, that were told of the controller."""
    async with AsyncExitStack() as stack:
        policy = write_policy(directory / "policy.yaml", step_s=STEP_MS / 1000)
        controller = await start_service(
            "controller", ["--policy", str(policy), "--listen", LOOPBACK, "--admin", LOOPBACK]
        )
        stack.push_async_callback(controller.stop)
        arguments = ["--model", str(MODEL), "--listen", LOOPBACK, "--least-step-ms", str(STEP_MS)]
        arguments += ["--announce", controller.addresses["admin"]]
        starting = [start_service("worker", arguments) for _ in range(workers)]
        started = {each.addresses["listen"]: each for each in await asyncio.gather(*starting)}
        for worker in started.values():
            stack.push_async_callback(worker.stop)
        yield controller, started


async def until_serving(controller: Service, serving: bool) -> None:
    """Returns once the controller's health is this."""
    wanted = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(controller.addresses["listen"]) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        async for response in watch(health_pb2.HealthCheckRequest(), timeout=20):
            if response.status == wanted:
                return


async def test_a_worker_announces_itself_drains_and_is_forgotten(tmp_path: Path) -> None:
    async with announced(tmp_path, workers=1) as (controller, workers):
        ((address, worker),) = workers.items()
        await until_serving(controller, True)
        async with Caller(controller.addresses["listen"], "key-patient") as caller:
            events = []
            async for event in caller.generate(greedy(LONG_SUM)):
                events.append(event)
                if len(events) == STOP_AFTER:
                    worker.process.send_signal(signal.SIGTERM)
                    await until_serving(controller, False)
            answered = Answered(events)
            assert answered.plan.worker == address
            assert [attempt.worker for attempt in answered.completion.attempts] == [address]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                _ = [event async for event in caller.generate(greedy(LONG_SUM))]
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await worker.process.wait() == 0


async def test_a_stream_whose_worker_is_stopped_goes_on_elsewhere_and_is_not_told_twice(
    tmp_path: Path,
) -> None:
    request = greedy(LONG_SUM)
    async with announced(tmp_path, workers=2) as (controller, workers):
        await until_serving(controller, True)
        async with Caller(controller.addresses["listen"], "key-patient") as caller:
            whole = Answered([event async for event in caller.generate(request)])
            events, longest_s, last_s = [], 0.0, time.monotonic()
            stopped = ""
            async for event in caller.generate(request):
                longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
                events.append(event)
                if len(events) == STOP_AFTER:
                    stopped = events[0].plan.worker
                    workers[stopped].process.send_signal(signal.SIGSTOP)
                if longest_s > 1.0 and stopped:
                    # Its stream was moved; it wakes and would go on with it.
                    workers[stopped].process.send_signal(signal.SIGCONT)
                    stopped = ""
            moved = Answered(events)
        assert len({attempt.worker for attempt in moved.completion.attempts}) == 2
        assert longest_s < 8.0  # 2.5 s, and what a busy machine adds
        for phase in (pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER):
            assert moved.tokens(phase) == whole.tokens(phase)
            assert moved.text(phase) == whole.text(phase)
        woken = moved.completion.attempts[0].worker
        while (await describe(woken)).load.running:
            pass  # it hears of the cancellation in its next step
