"""The spans of requests that end in all ways, through both doors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from controller.service.journal import Entry
from controller.telemetry.settings import TelemetrySettings
from curfew.telemetry.options import tracing_to
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.http.door import PLAIN
from tests.controller.service.harness import POLICY, Door, ask, controller, key
from tests.otlp import Receiver, Told, receiving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PARTS = ["admission", "plan", "queue"]


@asynccontextmanager
async def traced(worker: FakeWorker, policy: str = POLICY) -> AsyncIterator[tuple[Door, Receiver]]:
    """A controller whose spans have all come once the context is left."""
    async with (
        receiving() as receiver,
        tracing_to(receiver.address, "curfew-controller", None, time.monotonic) as tracing,
        controller(
            [worker.address], policy, telemetry=TelemetrySettings(tracing=tracing), http="127.0.0.1:0"
        ) as door,
    ):
        yield door, receiver


def request_span(receiver: Receiver) -> Told:
    (found,) = [span for span in receiver.spans if span.name.startswith("chat")]
    return found


def parts(receiver: Receiver) -> list[str]:
    below = [span for span in receiver.spans if span.parent_id == request_span(receiver).span_id]
    return [span.name for span in sorted(below, key=lambda span: PARTS.index(span.name))]


async def test_an_answered_request_tells_what_it_was_granted_and_what_came() -> None:
    async with FakeWorker(Script(reasoning=20)) as worker, traced(worker) as (door, receiver):
        answer = await door.generate("analyst")
    told, completion = request_span(receiver), answer.completion
    assert parts(receiver) == PARTS
    assert not told.failed
    assert told.attributes["gen_ai.usage.reasoning.output_tokens"] == completion.usage.reasoning_tokens
    assert told.attributes["gen_ai.response.id"] == answer.plan.request_id
    assert told.attributes["curfew.budget.planned_tokens"] == answer.plan.budget.reasoning_tokens
    assert told.attributes["curfew.promise.probability"] == pytest.approx(answer.plan.promised_probability)
    assert told.attributes["curfew.promise.kept"] is True
    assert told.attributes["curfew.reasoning_end"] == "natural"


async def test_a_refused_request_ends_where_it_was_refused() -> None:
    async with FakeWorker() as worker, traced(worker) as (door, receiver):
        await door.generate("impossible")
    told = request_span(receiver)
    assert told.name == "chat"
    assert told.failed
    assert told.attributes["error.type"] == "refused"
    assert told.attributes["curfew.refused_for"] == "promise"
    assert parts(receiver) == ["admission", "plan"]


async def test_a_request_over_its_limit_is_not_planned() -> None:
    async with (
        FakeWorker() as worker,
        traced(worker, POLICY + "    limits: {concurrency: 1}\n") as (door, receiver),
    ):
        worker.script.pause_after = 1
        running = door.call("late")
        await running.read()
        await door.generate("late")
        running.cancel()
    limited, left = sorted(
        (span for span in receiver.spans if span.name.startswith("chat")), key=lambda span: span.name
    )
    assert limited.attributes["curfew.refused_for"] == "limit"
    assert [span.name for span in receiver.spans if span.parent_id == limited.span_id] == ["admission"]
    assert left.attributes["curfew.outcome"] == "left"
    assert not left.failed


async def test_what_goes_wrong_in_telling_of_a_request_does_not_reach_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(entry: Entry, now_s: float) -> None:
        raise RuntimeError("telemetry is broken")

    settings = TelemetrySettings(also=[fail])
    async with FakeWorker() as worker, controller([worker.address], telemetry=settings) as door:
        answer = await door.generate("analyst")
    assert answer.error is None
    assert "telemetry is broken" in caplog.text


async def test_strangers_are_not_traced() -> None:
    async with FakeWorker() as worker, traced(worker) as (door, receiver):
        await door.generate("unknown")
    assert receiver.spans == []


@pytest.mark.parametrize("path", list(PLAIN))
async def test_requests_over_http_go_on_in_their_callers_trace(path: str) -> None:
    async with FakeWorker() as worker, traced(worker) as (door, receiver):
        headers = {"authorization": "Bearer a", "traceparent": TRACEPARENT}
        async with httpx.AsyncClient(base_url=f"http://{door.addresses.http}", headers=headers) as client:
            response = await client.post(path, json=PLAIN[path], timeout=20)
            assert response.status_code == 200
    told = request_span(receiver)
    assert (told.trace_id, told.parent_id) == (TRACE, PARENT)


async def test_a_trace_goes_on_over_grpc_through_the_worker_that_takes_over() -> None:
    async with FakeWorker(Script(fail_after=5)) as first, FakeWorker(Script(fail_after=5)) as second:
        first.loses_resumed = second.loses_resumed = False
        async with (
            receiving() as receiver,
            tracing_to(receiver.address, "curfew-controller", None, time.monotonic) as tracing,
            controller([first.address, second.address], telemetry=TelemetrySettings(tracing=tracing)) as door,
        ):
            metadata = (*key("analyst"), ("traceparent", TRACEPARENT))
            call = door.reasoning.Generate(ask(), metadata=metadata, timeout=20)
            async for _ in call:
                pass
    told = request_span(receiver)
    assert (told.trace_id, told.parent_id) == (TRACE, PARENT)
    assert told.attributes["curfew.attempts"] == 2
    handed_on = [dict(metadata)["traceparent"] for metadata in (*first.metadata, *second.metadata)]
    assert handed_on == [f"00-{TRACE}-{told.span_id}-01"] * 2
