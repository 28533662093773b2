"""ReasoningService: callers' door over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from controller.admission.identity import Caller, authorizations
from controller.service.requests import Requests
from curfew.rpc.calls import Context
from curfew.telemetry.tracing import trace_headers
from curfew.v1 import reasoning_pb2, reasoning_pb2_grpc

GenerateContext = Context[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]
PlanContext = Context[reasoning_pb2.PlanRequest, reasoning_pb2.PlanResponse]
ReportContext = Context[reasoning_pb2.ReportOutcomeRequest, reasoning_pb2.ReportOutcomeResponse]


class ReasoningServicer(reasoning_pb2_grpc.ReasoningServiceServicer):
    """Hands calls to `Requests`."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def Generate(
        self, request: reasoning_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        """Plans and runs one request."""
        return self._requests.generate(request, _caller(context))

    async def Plan(
        self, request: reasoning_pb2.PlanRequest, context: PlanContext
    ) -> reasoning_pb2.PlanResponse:
        """Makes the plan that Generate would make now."""
        return reasoning_pb2.PlanResponse(plan=await self._requests.plan(request.request, _caller(context)))

    async def ReportOutcome(
        self, request: reasoning_pb2.ReportOutcomeRequest, context: ReportContext
    ) -> reasoning_pb2.ReportOutcomeResponse:
        """Learns how good an answer of the tenant's was. The same report again changes nothing."""
        await self._requests.report_outcome(request, _caller(context))
        return reasoning_pb2.ReportOutcomeResponse()


def _caller(context: GenerateContext | PlanContext | ReportContext) -> Caller:
    metadata = context.invocation_metadata() or ()
    return Caller(authorizations(metadata), context.time_remaining, trace_headers(metadata))
