"""What callers may ask for, whatever door they come through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator

import grpc

from controller import wire
from controller.admission.identity import Caller, bearer, identify
from controller.admission.limits import PlanLimits, admit
from controller.admission.tokens import Tokens
from controller.admission.validation import outcome_violations, violations
from controller.desk import Desk
from controller.desk.desk import NoWorkerError
from controller.desk.flight import Flight
from controller.fleet import Fleet, Roster, Worker
from controller.planning.decision import Ask, Decision, Refusal
from controller.planning.needs import NOTHING, Ability
from controller.planning.outcomes import ConflictError, Outcomes
from controller.policy import LivePolicy, TenantPolicy
from controller.service.asking import ask_of, needs_of, no_worker, refused, unknown_model
from controller.service.generation import Generation
from controller.service.journal import Journal
from controller.service.outbox import Outbox
from controller.service.reception import Reception, RefusedError
from controller.state.shared import Permit, SharedState
from curfew.rpc.errors import RpcError, invalid, reason
from curfew.v1 import reasoning_pb2, worker_pb2

log = logging.getLogger(__name__)


class Requests:
    """Identifies, checks, has the desk decide, and relays.

    Every method raises RpcError, which is meant for the caller as it is; a door puts it into its own form.
    """

    def __init__(
        self,
        policy: LivePolicy,
        desk: Desk,
        reception: Reception,
        roster: Roster,
        fleet: Fleet,
        outcomes: Outcomes,
        journal: Journal,
        shared: SharedState,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        tokens: Tokens | None = None,
    ) -> None:
        """clock: seconds from any beginning. new_id: an id that no other request has. tokens: what callers
        may show instead of API keys; None: nothing.
        """
        self._policy = policy
        self._desk = desk
        self._reception = reception
        self._roster = roster
        self._fleet = fleet
        self._outcomes = outcomes
        self._journal = journal
        self._shared = shared
        self._clock = clock
        self._new_id = new_id
        self._tokens = tokens
        self._plan_limits = PlanLimits(clock)

    async def generate(
        self, request: reasoning_pb2.GenerateRequest, caller: Caller
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        """Plans and runs one request: its plan, then what it brings. Closing the generator frees its slot."""
        receipt_s = self._clock()
        request_id = self._new_id()
        policy = await self._admit(request, caller)
        with (
            _reported(request_id, policy.name),
            self._journal.entry(request_id, policy, request.labels, receipt_s, caller.trace) as entry,
            contextlib.ExitStack() as at_end,
        ):
            ask = entry.ask = self._ask(request, policy, caller)
            permit = await self._permit(policy, ask)
            at_end.callback(lambda: permit.end(0 if entry.run is None else entry.run.used_tokens))
            entry.admitted()
            flight = await self._reception.place(ask, policy, receipt_s, entry.planned)
            entry.decided(flight)
            outbox = Outbox()
            generation = Generation(
                request_id,
                flight,
                self._fleet,
                self._reception,
                self._roster,
                self._outcomes,
                self._clock,
                entry.trace.headers,
            )
            entry.run = generation
            relay = asyncio.create_task(
                generation.relay(
                    lambda: _worker_request(request_id, request, flight, self._clock() - receipt_s),
                    caller.time_remaining_s,
                    outbox,
                )
            )
            try:
                yield reasoning_pb2.GenerateResponse(
                    plan=_plan_message(request_id, ask, policy, flight.decision, flight.placement.worker)
                )
                while (event := await outbox.take()) is not None:
                    yield event
            finally:
                # However this ends, the worker's slot must be free again.
                relay.cancel()
                flight.leave()

    async def plan(self, request: reasoning_pb2.GenerateRequest, caller: Caller) -> reasoning_pb2.Plan:
        """Makes the plan that `generate` would make now."""
        request_id = self._new_id()
        policy = await self._admit(request, caller)
        with _reported(request_id, policy.name):
            await self._plan_limits.admit(policy)
            ask = self._ask(request, policy, caller)
            worker, decision = self._desk.look(ask, policy, self._clock())
            if isinstance(decision, Refusal):
                raise RefusedError(decision)
            return _plan_message(request_id, ask, policy, decision, worker)

    async def report_outcome(self, request: reasoning_pb2.ReportOutcomeRequest, caller: Caller) -> None:
        """Learns how good an answer of the tenant's was. The same report again changes nothing."""
        tenant = await self.tenant(caller)
        wrong = outcome_violations(request)
        if wrong:
            raise invalid(wrong)
        now_s = self._clock()
        try:
            trial = self._outcomes.report(tenant.name, request.request_id, request.score, now_s)
        except LookupError:
            raise RpcError(
                grpc.StatusCode.NOT_FOUND,
                "no request of this id was answered for this tenant of late",
                reason("REQUEST_NOT_FOUND", request_id=request.request_id),
            ) from None
        except ConflictError as error:
            raise RpcError(
                grpc.StatusCode.ALREADY_EXISTS,
                str(error),
                reason("OUTCOME_ALREADY_REPORTED", request_id=request.request_id),
            ) from None
        if trial is not None:
            self._desk.tenants[tenant.name].quality.learn(trial, request.score, now_s)

    async def tenant(self, caller: Caller) -> TenantPolicy:
        """Who calls, before anything else is known of the request."""
        return await identify(self._policy.current, bearer(caller.authorization), self._tokens)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that can be asked."""
        return self._roster.models

    @property
    def ready(self) -> bool:
        """Whether there is a worker for a request that comes now."""
        return self._roster.capacity > 0

    async def _admit(self, request: reasoning_pb2.GenerateRequest, caller: Caller) -> TenantPolicy:
        """What holds for a well-formed request of a known tenant: the first rule that matches its labels, or
        what the tenant has in general.
        """
        tenant = await self.tenant(caller)
        wrong = violations(request)
        if wrong:
            raise invalid(wrong)
        return tenant.for_labels(request.labels)

    async def _permit(self, policy: TenantPolicy, ask: Ask) -> Permit:
        """Counts the request against its tenant's limits. Raises RpcError when one is reached."""
        try:
            return await admit(self._shared, policy, ask.prompt_tokens)
        except RpcError:
            self._desk.tenants[policy.name].standing.note_failed()
            raise

    def _ask(self, request: reasoning_pb2.GenerateRequest, policy: TenantPolicy, caller: Caller) -> Ask:
        now_s = self._clock()
        if request.model and request.model not in self._roster.models:
            self._desk.best(NOTHING, now_s)  # where there is nobody, that is what is told
            raise unknown_model(request.model, self._roster.models)
        worker = self._desk.best(needs_of(request), now_s)
        lengths = self._desk.tenants[policy.name].lengths
        return ask_of(
            request,
            policy.budget.max_tokens,
            lengths,
            worker.limits.bytes_per_token,
            caller.time_remaining_s(),
        )


def _plan_message(
    request_id: str, ask: Ask, policy: TenantPolicy, decision: Decision, worker: Worker
) -> reasoning_pb2.Plan:
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
        estimated_prompt_tokens=ask.prompt_tokens,
        worker=worker.address,
    )
    if decision.deadline_s is not None:
        message.deadline.CopyFrom(wire.duration(decision.deadline_s))
    return message


@contextlib.contextmanager
def _reported(request_id: str, tenant: str) -> Iterator[None]:
    """Tells the caller why it is refused. Logs what nobody foresaw, and names the request to the caller, who
    learns nothing else of it.
    """
    try:
        yield
    except RpcError:
        raise
    except RefusedError as error:
        raise refused(tenant, error.refusal) from None
    except NoWorkerError as error:
        raise no_worker(error.lacking, error.retry_s) from None
    except Exception:
        log.exception("request %s failed", request_id)
        raise RpcError(
            grpc.StatusCode.INTERNAL,
            f"internal error; the log tells more about request {request_id}",
            reason("INTERNAL", request_id=request_id),
        ) from None


def _worker_request(
    request_id: str, request: reasoning_pb2.GenerateRequest, flight: Flight, elapsed_s: float
) -> worker_pb2.WorkerServiceGenerateRequest:
    placement, decision = flight.placement, flight.decision
    message = worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=request.messages,
        mode=wire.MODE[decision.mode],
        budget=wire.budget(decision, elapsed_s),
        sampling=request.sampling,
        priority=placement.policy.priority,
        tools=request.tools,
        tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        answer_format=request.answer_format if request.HasField("answer_format") else None,
    )
    message.budget.reasoning_tokens = flight.budget_tokens
    if flight.reason_until_s is not None:
        message.budget.reason_until.CopyFrom(wire.duration(max(0.0, flight.reason_until_s - elapsed_s)))
    abilities = flight.worker.limits.abilities
    if decision.reserve_tokens > flight.budget_tokens and Ability.ADJUST in abilities:
        message.reserve_reasoning_tokens = decision.reserve_tokens
    probe = placement.policy.probe
    if probe is not None and decision.budget_tokens and Ability.PROBE in abilities:
        message.probe.CopyFrom(
            worker_pb2.ProbeRule(
                first_reasoning_tokens=probe.first_tokens,
                every_reasoning_tokens=probe.every_tokens,
                stable_answers=probe.stable_answers,
                answer_tokens=probe.answer_tokens,
            )
        )
    if decision.deadline_s is not None:
        message.deadline.CopyFrom(wire.duration(max(0.0, decision.deadline_s - elapsed_s)))
    return message
