"""Watches the streams of a worker's service, whatever is behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import cast

import grpc

from curfew.rpc.calls import Context, Request, Response, Streaming
from curfew.rpc.errors import RpcError
from curfew.telemetry.logs import concerns
from curfew.telemetry.tracing import NoTracing, Trace, Tracing, trace_headers
from curfew.v1 import worker_pb2
from worker.telemetry.spans import RequestSpans
from worker.telemetry.totals import Totals

GENERATE = "/curfew.v1.WorkerService/Generate"

GenerateRequest = worker_pb2.WorkerServiceGenerateRequest
GenerateResponse = worker_pb2.WorkerServiceGenerateResponse
Responses = AsyncGenerator[GenerateResponse, None]

_FAILURES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


class Watch(grpc.aio.ServerInterceptor):
    """Counts what its streams bring, and traces it. Only a worker that is asked for telemetry has one, so
    that others do nothing for it.
    """

    def __init__(
        self, totals: Totals, tracing: Tracing | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """tracing: None traces nothing. clock: in seconds."""
        self._totals, self._tracing, self._clock = totals, tracing or NoTracing(), clock

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Request, Response] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Request, Response] | None:
        """Wraps the handler of Generate."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method != GENERATE:
            return handler
        generate = cast("Streaming[GenerateRequest, GenerateResponse]", handler.unary_stream)

        def watched(
            request: GenerateRequest, context: Context[GenerateRequest, GenerateResponse]
        ) -> Responses:
            headers = trace_headers(context.invocation_metadata() or ())
            trace = self._tracing.begin(headers, self._clock())
            concerns(request.request_id, trace_id=trace.trace_id)
            return self._watched(request, generate(request, context), trace)

        return grpc.unary_stream_rpc_method_handler(
            watched,
            handler.request_deserializer,
            handler.response_serializer,
        )

    async def _watched(self, request: GenerateRequest, responses: Responses, trace: Trace) -> Responses:
        outcome, spans = "cancelled", RequestSpans(request.request_id, trace, self._clock)
        try:
            async with aclosing(responses):
                async for response in responses:
                    if response.HasField("completion"):
                        self._totals.completed(response.completion, trace.trace_id)
                        outcome = "completed"
                    if trace.recorded:
                        spans.take(response)
                    yield response
        except RpcError as error:
            outcome = "failed" if error.code in _FAILURES else "refused"
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._totals.ended(outcome)
            spans.end(outcome)
