"""A real OTLP endpoint on loopback, which keeps the spans that it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Request = trace_service_pb2.ExportTraceServiceRequest
Response = trace_service_pb2.ExportTraceServiceResponse
Value = str | bool | int | float | None


@dataclass(frozen=True, slots=True)
class Told:
    """A span. service: that told it. Times in nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    failed: bool
    attributes: dict[str, Value]


@dataclass
class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans. address: HOST:PORT."""

    address: str = ""
    spans: list[Told] = field(default_factory=list)
    resources: list[dict[str, Value]] = field(default_factory=list)

    async def Export(self, request: Request, context: object) -> Response:
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            self.resources.append(resource)
            for scope in of_resource.scope_spans:
                self.spans += [_told(str(resource["service.name"]), span) for span in scope.spans]
        return Response()

    def named(self, name: str) -> Told:
        """The one span of a name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Receives while the context is open."""
    receiver, server = Receiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)


def _told(service: str, span: Span) -> Told:
    return Told(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == Status.STATUS_CODE_ERROR,
        _values(span.attributes),
    )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        found[each.key] = None if kind is None else getattr(each.value, kind)
    return found
