"""What a running system tells of itself: metrics, and traces through all of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise

import grpc
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from controller.policy.alerts import OPERATION, WINDOWS, missed_ratio
from curfew import AsyncClient
from curfew.telemetry import controller_metrics, worker_metrics
from curfew.telemetry.metric import Kind, Metric
from tests.otlp import Receiver, receiving
from tests.promql import metric_names
from tests.system.conftest import (
    LONG_SUM,
    LOOPBACK,
    System,
    describe,
    start_controller,
    start_worker,
    write_policy,
)
from tools.dashboards.__main__ import DASHBOARDS
from tools.telemetry_page import PAGE

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True, slots=True)
class Told:
    """What a system told that was asked a few things by every tenant, and one thing within a trace."""

    receiver: Receiver
    trace_id: str
    caller_span_id: str
    controller: str
    """Its metrics, as OpenMetrics text."""
    worker: str
    log: list[dict[str, object]]
    """The controller's lines."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Told]:
    directory = tmp_path_factory.mktemp("telemetry")
    async with receiving() as receiver, contextlib.AsyncExitStack() as stack:
        log = stack.enter_context((directory / "log").open("wb"))
        flags = ("--metrics", LOOPBACK, "--otlp", receiver.address)
        worker = await start_worker(LOOPBACK, *flags)
        stack.push_async_callback(worker.stop)
        address = worker.addresses["listen"]
        step = (await describe(address)).speed.decode[0].step
        policy = write_policy(directory / "policy.yaml", step.seconds + step.nanos / 1e9)
        controller = await start_controller(
            policy,
            address,
            *flags,
            *("--shadow", str(policy), "--record", str(directory / "record")),
            *("--log-format", "json", "--log-requests"),
            log=log,
        )
        stack.push_async_callback(controller.stop)
        system = System(address, controller.addresses["listen"])
        for tenant in ("patient", "instant"):
            await system.ask(tenant, LONG_SUM)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await system.ask("strict", LONG_SUM)
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
        with tracer.start_as_current_span("caller") as span:
            async with AsyncClient(system.controller, key="key-patient") as client:
                await client.ask(LONG_SUM, max_reasoning_tokens=16)
        of_controller = await scrape(controller.addresses["metrics"])
        of_worker = await scrape(worker.addresses["metrics"])
        for service in (controller, worker):
            assert await service.stop() == 0
        context = span.get_span_context()
        yield Told(
            receiver,
            trace.format_trace_id(context.trace_id),
            trace.format_span_id(context.span_id),
            of_controller,
            of_worker,
            [json.loads(line) for line in (directory / "log").read_text().splitlines()],
        )


async def scrape(address: str) -> str:
    def get() -> str:
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": OPEN_METRICS})
        with urllib.request.urlopen(request, timeout=20) as response:
            return str(response.read().decode())

    return await asyncio.to_thread(get)


def emitted(text: str) -> dict[str, set[str]]:
    """Names with samples, and their labels."""
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_of_the_catalogue_is_emitted_with_its_labels(told: Told) -> None:
    for text, catalogue in (
        (told.controller, controller_metrics.CONTROLLER_METRICS),
        (told.worker, worker_metrics.WORKER_METRICS),
    ):
        seen = emitted(text)
        for metric in catalogue:
            name = f"{metric.name}_sum" if metric.kind is Kind.HISTOGRAM else metric.name
            assert seen.get(name) == set(metric.labels), metric.name


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_emitted_that_the_catalogue_does_not_have(told: Told) -> None:
    known: set[str] = set()
    for metric in (*controller_metrics.CONTROLLER_METRICS, *worker_metrics.WORKER_METRICS):
        known |= _samples(metric)
    for name in (*emitted(told.controller), *emitted(told.worker)):
        assert name in known or name.startswith(("process_", "python_gc_"))


@pytest.mark.asyncio(loop_scope="module")
async def test_every_panel_and_every_alert_asks_for_what_is_emitted(told: Told) -> None:
    known = emitted(told.controller).keys() | emitted(told.worker).keys()
    known |= {missed_ratio(window) for window in WINDOWS}
    queries = [
        (f"{dashboard.name}: {panel.title}", query.expression)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]
    queries += [(alert.name, alert.expression) for alert in OPERATION]
    for where, expression in queries:
        assert metric_names(expression) <= known, where
    for dashboard in DASHBOARDS:
        for choice in dashboard.choices:
            assert choice.metric in known


@pytest.mark.asyncio(loop_scope="module")
async def test_one_trace_goes_through_caller_controller_and_worker(told: Told) -> None:
    spans = [span for span in told.receiver.spans if span.trace_id == told.trace_id]
    by_name = {(span.service, span.name): span for span in spans}
    assert len(by_name) == len(spans)
    controller = by_name["curfew-controller", "chat model"]
    worker = by_name["curfew-worker", "curfew.v1.WorkerService/Generate"]
    assert controller.parent_id == told.caller_span_id
    assert worker.parent_id == controller.span_id
    assert {span.name for span in spans if span.parent_id == controller.span_id} == {
        *("admission", "plan", "queue"),
        worker.name,
    }
    assert controller.attributes["curfew.tenant"] == "patient"
    assert controller.attributes["curfew.reasoning_end"] == "budget"


@pytest.mark.asyncio(loop_scope="module")
async def test_every_span_and_attribute_is_explained(told: Told) -> None:
    page = PAGE.read_text()
    for span in told.receiver.spans:
        assert f"`{span.name.replace('chat model', 'chat MODEL')}`" in page
        for name in span.attributes:
            assert f"`{name}`" in page


@pytest.mark.asyncio(loop_scope="module")
async def test_every_request_has_a_log_line_that_leads_to_its_trace_and_holds_no_text(told: Told) -> None:
    lines = [line for line in told.log if str(line["message"]).startswith("request ")]
    assert [line["tenant"] for line in lines] == ["patient", "instant", "strict", "patient"]
    assert [line["curfew.outcome"] for line in lines] == ["answered", "answered", "refused", "answered"]
    assert lines[3]["trace_id"] == told.trace_id
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert LONG_SUM not in json.dumps(told.log)


@pytest.mark.asyncio(loop_scope="module")
async def test_exemplars_lead_from_latencies_to_traces(told: Told) -> None:
    exemplars = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(told.controller)
        for sample in family.samples
        if sample.exemplar is not None and sample.labels["tenant"] == "patient"
    }
    assert told.trace_id in exemplars


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("end", "parts"),
    [
        ("none", ["queue", "prefill", "answer"]),
        ("natural", ["queue", "prefill", "reasoning", "answer"]),
        ("budget", ["queue", "prefill", "reasoning", "cut", "answer"]),
    ],
)
async def test_a_worker_tells_of_the_parts_that_a_request_had(told: Told, end: str, parts: list[str]) -> None:
    (request,) = [
        span
        for span in told.receiver.spans
        if span.service == "curfew-worker" and span.attributes.get("curfew.decode_steps") is not None
        if span.attributes["curfew.reasoning_end"] == end
    ]
    below = sorted(
        (span for span in told.receiver.spans if span.parent_id == request.span_id),
        key=lambda span: (span.began_ns, span.ended_ns),
    )
    assert [span.name for span in below] == parts
    for before, after in pairwise(below):
        assert before.ended_ns == pytest.approx(after.began_ns, abs=2000)


def _samples(metric: Metric) -> set[str]:
    if metric.kind is Kind.HISTOGRAM:
        return {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
    return {metric.name}
