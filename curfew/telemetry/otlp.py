"""Traces that are sent over OTLP, by OpenTelemetry's SDK."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from curfew.telemetry.tracing import Attributes, Headers

LAST_SPANS_S = 2.0
"""For which an endpoint that does not take what is left is tried at the end."""

_W3C = TraceContextTextMapPropagator()


class OtlpTracing:
    """Traces whose spans go to an exporter.

    Spans are built when a request is over, from times that were noted anyway; only the request's own is begun
    with it, since its id is handed on.
    """

    def __init__(self, provider: TracerProvider, clock: Callable[[], float]) -> None:
        """clock: that of the times that it is told, in seconds."""
        self._tracer = provider.get_tracer("curfew", version("curfew"))
        self._clock = clock

    def begin(self, received: Headers, began_s: float) -> OtlpTrace:
        """A request came at this time; received: the trace that it is a part of, if it is of any."""
        parent = _W3C.extract(dict(received), Context()) if received else Context()
        zero_ns = time.time_ns() - round(self._clock() * 1e9)
        span = self._tracer.start_span(
            "request", parent, trace.SpanKind.SERVER, start_time=zero_ns + round(began_s * 1e9)
        )
        return OtlpTrace(self._tracer, span, zero_ns)


class OtlpTrace:
    """See `curfew.telemetry.tracing.Trace`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, zero_ns: int) -> None:
        """zero_ns: since 1970, at which the service's clock was 0."""
        self._tracer, self._span, self._zero_ns = tracer, span, zero_ns
        self._context = trace.set_span_in_context(span, Context())
        self.recorded = span.is_recording()
        """Whether the sampler took it."""

    @property
    def trace_id(self) -> str:
        """In hexadecimal digits; empty unless it is recorded."""
        return trace.format_trace_id(self._span.get_span_context().trace_id) if self.recorded else ""

    @property
    def headers(self) -> Headers:
        """With which it is handed on to the next service."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context)
        return tuple(carrier.items())

    def span(self, name: str, began_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
        """A part of the request, which is over."""
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=self._ns(began_s)).end(
            self._ns(ended_s)
        )

    def end(self, name: str, ended_s: float, attributes: Attributes, error: str = "") -> None:
        """The request is over. error: what kind; empty if all went well."""
        span = self._span
        if self.recorded:
            span.update_name(name)
            span.set_attributes(attributes)
            if error:
                span.set_attribute("error.type", error)
                span.set_status(trace.StatusCode.ERROR, error)
        span.end(self._ns(ended_s))

    def _ns(self, time_s: float) -> int:
        return self._zero_ns + round(time_s * 1e9)


@asynccontextmanager
async def traces_to(
    exporter: SpanExporter, service: str, ratio: float | None, clock: Callable[[], float]
) -> AsyncIterator[OtlpTracing]:
    """Traces that go to an exporter, in batches, by a thread; what is left is sent at the end.

    service: its name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has one. ratio: of the traces that
    begin here, how many are recorded, in [0, 1]; None leaves that to OTEL_TRACES_SAMPLER, whose default is
    all. A trace that began elsewhere is recorded if it is there.
    """
    sampler: Sampler | None = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
    provider = TracerProvider(sampler=sampler, resource=_resource(service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OtlpTracing(provider, clock)
    finally:
        sending = asyncio.create_task(asyncio.to_thread(provider.shutdown))
        if not (await asyncio.wait([sending], timeout=LAST_SPANS_S))[0]:
            exporter.shutdown()  # which ends the attempts to send
        await sending


def traces_over_otlp(
    target: str, service: str, ratio: float | None, clock: Callable[[], float]
) -> AbstractAsyncContextManager[OtlpTracing]:
    """Traces that go to a target; see `exporter_to` and `traces_to`."""
    return traces_to(exporter_to(target), service, ratio, clock)


def exporter_to(target: str) -> SpanExporter:
    """Sends to an OTLP endpoint over gRPC: HOST:PORT in clear text, or a URL. Empty leaves it to
    OTEL_EXPORTER_OTLP_ENDPOINT, whose default is this machine's.
    """
    if not target:
        return OTLPSpanExporter()
    return OTLPSpanExporter(endpoint=target if "://" in target else f"http://{target}")


def _resource(service: str) -> Resource:
    """What the environment says of this process goes before what is known of it."""
    known = {
        "service.name": service,
        "service.version": version("curfew"),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create({**known, **OTELResourceDetector().detect().attributes})
