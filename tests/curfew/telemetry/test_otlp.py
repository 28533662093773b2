"""Traces, as an OTLP endpoint receives them."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractAsyncContextManager

import pytest

from curfew.telemetry import otlp
from curfew.telemetry.options import TelemetryError, tracing_to
from curfew.telemetry.tracing import Tracing, trace_headers
from tests.otlp import Receiver, receiving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-{flag}") for flag in ("01", "00"))


def tracing(receiver: Receiver, ratio: float | None = None) -> AbstractAsyncContextManager[Tracing | None]:
    return tracing_to(receiver.address, "curfew-test", ratio, time.monotonic)


async def test_a_request_is_a_span_whose_parts_are_below_it() -> None:
    async with receiving() as receiver:
        async with tracing(receiver) as traces:
            assert traces is not None
            began_s = time.monotonic()
            began_ns = time.time_ns()
            trace = traces.begin((), began_s)
            trace.span("queue", began_s + 1, began_s + 3, {"curfew.tokens": 7})
            trace.end("chat small", began_s + 4, {"curfew.tenant": "support"})
        request, part = receiver.named("chat small"), receiver.named("queue")
    assert part.parent_id == request.span_id
    assert request.parent_id == ""
    assert {request.trace_id, part.trace_id} == {trace.trace_id}
    assert request.began_ns == pytest.approx(began_ns, abs=1e8)
    assert part.began_ns - request.began_ns == pytest.approx(1e9, abs=1e3)
    assert request.ended_ns - part.ended_ns == pytest.approx(1e9, abs=1e3)
    assert part.attributes == {"curfew.tokens": 7}
    assert request.attributes == {"curfew.tenant": "support"}
    assert not request.failed


async def test_what_went_wrong_is_told_by_its_kind() -> None:
    async with receiving() as receiver:
        async with tracing(receiver) as traces:
            assert traces is not None
            traces.begin((), 0.0).end("chat", 1.0, {}, error="refused")
        assert receiver.named("chat").failed
        assert receiver.named("chat").attributes == {"error.type": "refused"}


async def test_a_trace_that_began_elsewhere_goes_on_and_is_handed_on() -> None:
    async with receiving() as receiver:
        async with tracing(receiver) as traces:
            assert traces is not None
            trace = traces.begin((SAMPLED,), 0.0)
            handed_on = dict(trace.headers)
            trace.end("chat", 1.0, {})
        request = receiver.named("chat")
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT)
    assert handed_on["traceparent"] == f"00-{TRACE}-{request.span_id}-01"


@pytest.mark.parametrize(("received", "ratio"), [((UNSAMPLED,), 1.0), ((), 0.0)])
async def test_who_began_a_trace_decides_whether_it_is_recorded(
    received: tuple[tuple[str, str], ...], ratio: float
) -> None:
    async with receiving() as receiver:
        async with tracing(receiver, ratio) as traces:
            assert traces is not None
            trace = traces.begin(received, 0.0)
            assert not trace.recorded
            assert trace.trace_id == ""
            flags = dict(trace.headers)["traceparent"].rpartition("-")[2]
            assert int(flags, 16) % 2 == 0
            trace.end("chat", 1.0, {})
            kept = traces.begin((SAMPLED,), 0.0)
            kept.end("kept", 1.0, {})
        assert [span.name for span in receiver.spans] == ["kept"]


async def test_the_environment_goes_before_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=mine")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with receiving() as receiver:
        async with tracing(receiver) as traces:
            assert traces is not None
            traces.begin((), 0.0).end("dropped", 1.0, {})
            traces.begin((SAMPLED,), 0.0).end("kept", 1.0, {})
        assert [span.name for span in receiver.spans] == ["kept"]
        (resource,) = receiver.resources
    assert resource["service.name"] == "mine"
    assert resource["deployment.environment.name"] == "test"
    assert "service.version" in resource


async def test_an_endpoint_that_is_away_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "LAST_SPANS_S", 0.1)
    began_s = time.monotonic()
    async with tracing_to("127.0.0.1:1", "curfew-test", None, time.monotonic) as traces:
        assert traces is not None
        for _ in range(10_000):
            traces.begin((), 0.0).end("lost", 1.0, {})
    assert time.monotonic() - began_s < 20  # and not as long as the exporter would try


async def test_nothing_is_traced_when_nobody_asks() -> None:
    async with tracing_to(None, "curfew-test", None, time.monotonic) as traces:
        assert traces is None


async def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "curfew.telemetry.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(
        TelemetryError, match=r"--otlp needs opentelemetry: pip install 'curfew\[telemetry\]'"
    ):
        async with tracing_to("127.0.0.1:4317", "curfew-test", None, time.monotonic):
            pass


def test_only_headers_of_a_trace_are_taken_for_one() -> None:
    metadata = (("authorization", "Bearer a"), SAMPLED, ("tracestate", "x=1"), ("key-bin", b"1"))
    assert trace_headers(metadata) == (SAMPLED, ("tracestate", "x=1"))
