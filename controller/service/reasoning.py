"""ReasoningService: the door for callers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator

import grpc

from controller import wire
from controller.admission.identity import identify
from controller.admission.validation import violations
from controller.fleet import Fleet
from controller.policy import LivePolicy, TenantPolicy
from controller.service.generation import Generation
from controller.service.outbox import Outbox
from controller.service.placement import Placement, place
from controller.service.tenants import Tenants
from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, invalid, reason
from curfew.v1 import reasoning_pb2, reasoning_pb2_grpc, worker_pb2

log = logging.getLogger(__name__)

GenerateContext = Context[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]
PlanContext = Context[reasoning_pb2.PlanRequest, reasoning_pb2.PlanResponse]
ReportContext = Context[reasoning_pb2.ReportOutcomeRequest, reasoning_pb2.ReportOutcomeResponse]


class ReasoningServicer(reasoning_pb2_grpc.ReasoningServiceServicer):
    """Identifies, checks, plans and relays."""

    def __init__(
        self,
        policy: LivePolicy,
        fleet: Fleet,
        tenants: Tenants,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        """clock: seconds from any beginning. new_id: an id that no other request has."""
        self._policy = policy
        self._fleet = fleet
        self._tenants = tenants
        self._clock = clock
        self._new_id = new_id

    async def Generate(
        self, request: reasoning_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        """Plans and runs one request."""
        receipt_s = self._clock()
        request_id = self._new_id()
        policy = self._admit(request, context)
        tenant = self._tenants[policy.name]
        with _reported(request_id):
            try:
                placement = self._place(request, context, policy, receipt_s)
            except RpcError:
                tenant.standing.note_failed()
                raise
            outbox = Outbox()
            sent = self._fleet.send(placement.link.worker, placement.ask.prompt_tokens)
            generation = Generation(
                request_id, placement, policy.objectives, tenant, self._fleet, sent, receipt_s, self._clock
            )
            call = placement.link.generate(
                _worker_request(request_id, request, placement, policy.priority, self._clock() - receipt_s),
                context.time_remaining(),
            )
            relay = asyncio.create_task(generation.relay(call, outbox))
            try:
                plan = self._plan_message(request_id, placement, policy)
                yield reasoning_pb2.GenerateResponse(plan=plan)
                while (event := await outbox.take()) is not None:
                    yield event
            finally:
                # However this ends, the worker's slot must be free again.
                call.cancel()
                relay.cancel()
                sent.end()
                if not generation.ended:
                    tenant.standing.note_left()

    async def Plan(
        self, request: reasoning_pb2.PlanRequest, context: PlanContext
    ) -> reasoning_pb2.PlanResponse:
        """Makes the plan that Generate would make now."""
        request_id = self._new_id()
        policy = self._admit(request.request, context)
        with _reported(request_id):
            placement = self._place(request.request, context, policy, self._clock())
            return reasoning_pb2.PlanResponse(plan=self._plan_message(request_id, placement, policy))

    async def ReportOutcome(
        self, request: reasoning_pb2.ReportOutcomeRequest, context: ReportContext
    ) -> reasoning_pb2.ReportOutcomeResponse:
        """Not implemented: quality curves come from the policy."""
        raise RpcError(grpc.StatusCode.UNIMPLEMENTED, "quality curves are not learnt from outcomes yet")

    def _admit(
        self, request: reasoning_pb2.GenerateRequest, context: GenerateContext | PlanContext
    ) -> TenantPolicy:
        """What holds for a well-formed request of a known tenant: the first rule that matches its labels, or
        what the tenant has in general.
        """
        tenant = identify(self._policy.current, context.invocation_metadata() or ())
        wrong = violations(request)
        if wrong:
            raise invalid(wrong)
        return tenant.for_labels(request.labels)

    def _place(
        self,
        request: reasoning_pb2.GenerateRequest,
        context: GenerateContext | PlanContext,
        policy: TenantPolicy,
        now_s: float,
    ) -> Placement:
        tenant = self._tenants[policy.name]
        return place(
            request, policy, tenant.lengths, tenant.calibration, self._fleet, context.time_remaining(), now_s
        )

    def _plan_message(
        self, request_id: str, placement: Placement, policy: TenantPolicy
    ) -> reasoning_pb2.Plan:
        decision = placement.decision
        message = reasoning_pb2.Plan(
            request_id=request_id,
            policy_version=policy.version,
            tenant=policy.name,
            rule=policy.rule,
            mode=wire.MODE[decision.mode],
            budget=wire.budget(decision, elapsed_s=0.0),
            target_share=decision.share,
            predicted_latency=wire.duration(decision.predicted_s),
            promised_probability=decision.promised_probability,
            why=decision.why,
            estimated_prompt_tokens=placement.ask.prompt_tokens,
            worker=placement.link.worker.address,
        )
        if decision.deadline_s is not None:
            message.deadline.CopyFrom(wire.duration(decision.deadline_s))
        return message


@contextlib.contextmanager
def _reported(request_id: str) -> Iterator[None]:
    """Logs what nobody foresaw, and names the request to the caller, who learns nothing else of it."""
    try:
        yield
    except RpcError:
        raise
    except Exception:
        log.exception("request %s failed", request_id)
        raise RpcError(
            grpc.StatusCode.INTERNAL,
            f"internal error; the log tells more about request {request_id}",
            reason("INTERNAL", request_id=request_id),
        ) from None


def _worker_request(
    request_id: str,
    request: reasoning_pb2.GenerateRequest,
    placement: Placement,
    priority: int,
    elapsed_s: float,
) -> worker_pb2.WorkerServiceGenerateRequest:
    decision = placement.decision
    message = worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=request.messages,
        mode=wire.MODE[decision.mode],
        budget=wire.budget(decision, elapsed_s),
        sampling=request.sampling,
        priority=priority,
    )
    if decision.deadline_s is not None:
        message.deadline.CopyFrom(wire.duration(max(0.0, decision.deadline_s - elapsed_s)))
    return message
