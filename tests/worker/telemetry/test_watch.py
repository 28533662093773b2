"""What a worker counts of the streams of its service."""

from __future__ import annotations

import grpc
import pytest

from curfew.telemetry import worker_metrics as metrics
from curfew.v1 import worker_pb2
from tests.telemetry import value
from tests.worker.service.serving import Steps, Worker, ask, serving
from worker.service import responses
from worker.telemetry.readings import WorkerReadings
from worker.telemetry.totals import Totals
from worker.telemetry.watch import Watch


async def until_counted(worker: Worker, totals: Totals, requests: int) -> None:
    """The last word to a caller comes a moment before."""
    while sum(r.value for r in totals.read() if r.metric is metrics.REQUESTS) != requests:  # type: ignore[misc]
        await worker.load()


async def test_a_completed_request_is_counted_with_its_tokens() -> None:
    totals = Totals()
    async with serving(interceptors=[Watch(totals)]) as worker:
        answer = await worker.ask(ask())
        await until_counted(worker, totals, 1)
    completion = answer.completions[0]
    readings = list(totals.read())
    assert value(readings, metrics.REQUESTS, "completed") == 1
    assert value(readings, metrics.TOKENS, "prompt") == completion.usage.prompt_tokens
    assert value(readings, metrics.TOKENS, "reasoning") == completion.usage.reasoning_tokens
    assert value(readings, metrics.TOKENS, "answer") == completion.usage.answer_tokens
    assert value(readings, metrics.QUEUE) == value(readings, metrics.PREFILL) == 1


async def test_refused_and_cancelled_requests_are_told_apart() -> None:
    totals = Totals()
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, interceptors=[Watch(totals)]) as worker:
        with pytest.raises(grpc.aio.AioRpcError):
            await worker.ask(ask(reasoning=1 << 30))
        call = worker.stub.Generate(ask(reasoning=900))
        await worker.between_steps(call.read())
        call.cancel()
        await until_counted(worker, totals, 2)
    readings = list(totals.read())
    assert value(readings, metrics.REQUESTS, "refused") == 1
    assert value(readings, metrics.REQUESTS, "cancelled") == 1


async def test_requests_that_the_device_fails_are_counted_as_failed() -> None:
    totals = Totals()
    steps = Steps()
    async with serving(steps=steps, interceptors=[Watch(totals)]) as worker:
        steps.failure = RuntimeError("the device is gone")
        with pytest.raises(grpc.aio.AioRpcError):
            await worker.ask(ask())
        assert value(readings_of(worker, totals).read(), metrics.FAILED) == 1
    assert value(totals.read(), metrics.REQUESTS, "failed") == 1


async def test_the_load_is_read_as_it_is() -> None:
    totals = Totals()
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, interceptors=[Watch(totals)]) as worker:
        call = worker.stub.Generate(ask(reasoning=900))
        await worker.between_steps(call.read())
        load = await worker.until(lambda load: load.running == 1)
        readings = list(readings_of(worker, totals).read())
        call.cancel()
        steps.let_go()
        await until_counted(worker, totals, 1)
    assert value(readings, metrics.RUNNING) == 1
    assert value(readings, metrics.FREE_SLOTS) == load.free_slots
    assert value(readings, metrics.FAILED) == 0


def readings_of(worker: Worker, totals: Totals) -> WorkerReadings:
    thread = worker.thread
    return WorkerReadings(
        worker_pb2.DescribeWorkerResponse(),
        lambda: responses.load(thread.load),
        lambda: thread.failed,
        totals,
    )
