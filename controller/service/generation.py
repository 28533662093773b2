"""One request's stream, from the worker's events to the caller's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import grpc

from controller import wire
from controller.desk import Adjustment, Done, Flight, Objective, Settlement
from controller.fleet import Fleet, Worker
from controller.fleet.link import Stream
from controller.fleet.roster import Roster, Sent
from controller.planning.needs import Ability
from controller.planning.outcomes import Outcomes
from controller.policy import Otherwise
from controller.service.hedge import Responses, StreamLostError, race
from controller.service.outbox import Outbox
from controller.service.passed import Passed
from controller.service.reception import Reception
from controller.service.upstream import caller_error, lost
from curfew.rpc.errors import RpcError
from curfew.telemetry.tracing import Headers
from curfew.v1 import generation_pb2, reasoning_pb2, worker_pb2

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""Workers that may be lost under one request: it may be what kills them."""
RESUMABLE = frozenset({Ability.RESUME, Ability.TOKEN_IDS})
"""What a worker must be able to do for another to go on with what it was lost with."""
MOST_PATIENCE_S = 5.0
"""For which a request without a worker waits for another, while it is in time."""

STOPPED_BY_ITSELF = (generation_pb2.REASONING_END_NATURAL, generation_pb2.REASONING_END_LOOP)
CUT = (
    generation_pb2.REASONING_END_BUDGET,
    generation_pb2.REASONING_END_DEADLINE,
    generation_pb2.REASONING_END_STABLE,
)
OBJECTIVE = {
    Objective.DEADLINE: reasoning_pb2.OBJECTIVE_DEADLINE,
    Objective.FIRST_TOKEN: reasoning_pb2.OBJECTIVE_FIRST_TOKEN,
    Objective.FIRST_ANSWER_TOKEN: reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN,
    Objective.PER_TOKEN: reasoning_pb2.OBJECTIVE_PER_TOKEN,
}


class Generation:
    """Reads a worker's stream to its end, whatever the caller does meanwhile, tells the flight what happens
    and passes on what the caller should see.

    Per delta it does as little as it can.
    """

    def __init__(
        self,
        request_id: str,
        flight: Flight,
        fleet: Fleet,
        reception: Reception,
        roster: Roster,
        outcomes: Outcomes,
        clock: Callable[[], float],
        trace: Headers = (),
    ) -> None:
        """trace: with which a worker is told what trace the request is a part of."""
        self._request_id = request_id
        self._flight = flight
        self._fleet = fleet
        self._reception = reception
        self._passed = Passed()
        self._attempts: list[reasoning_pb2.Attempt] = []
        self._attempt_id = request_id
        self._attempt = reasoning_pb2.Attempt()
        """Of `_attempts`, the one that is read from."""
        self._roster = roster
        self._outcomes = outcomes
        self._clock = clock
        self._trace = trace
        self._delivered_tokens = 0
        self.reasoning_tokens = 0
        """That have come so far."""
        self.answer_tokens = 0
        """That have come so far."""
        self.done: Done | None = None
        """What the worker said of it, once it is completed."""
        self.settlement: Settlement | None = None
        """What came of the promises, once it is completed."""
        self.reasoning_end = generation_pb2.REASONING_END_UNSPECIFIED
        """Why its reasoning ended, once it is completed."""
        self._adjusting: asyncio.Task[None] | None = None

    @property
    def attempts(self) -> int:
        """Workers that it was sent to so far."""
        return len(self._attempts)

    @property
    def hedges(self) -> int:
        """Those of them that were begun beside another."""
        return sum(attempt.hedge for attempt in self._attempts)

    @property
    def used_tokens(self) -> int:
        """Prompt, output and probes, as far as is known."""
        if self.done is not None:
            return self.done.prompt_tokens + self.done.output_tokens + self.done.probe_tokens
        return self._flight.placement.ask.prompt_tokens + self._delivered_tokens

    async def relay(
        self,
        message: Callable[[], worker_pb2.WorkerServiceGenerateRequest],
        time_remaining: Callable[[], float | None],
        outbox: Outbox,
    ) -> None:
        """Moves workers' events to the outbox and closes it, with an error when no worker completes it.

        message: the request as of now. Where a worker is lost, another goes on after the last token that was
        passed on, be it taken by the caller or not.
        """
        flight = self._flight
        error: Exception | None = None
        try:
            for number in range(MOST_ATTEMPTS):
                request = message()
                self._passed.resume(request)
                if number:
                    # An id of its own: the worker that was lost may be back, and not know that it was.
                    request.request_id = f"{self._request_id}.{number}"
                    request.priority = 0
                error = await self._run(request, time_remaining(), outbox)
                if error is None or flight.ended or not _is_lost(error) or number == MOST_ATTEMPTS - 1:
                    break
                resuming = self._passed.anything
                if resuming and not flight.worker.limits.abilities >= RESUMABLE:
                    break
                if not await self._reception.move(flight, resuming, self._patience_s()):
                    break
        except Exception as unforeseen:  # raised again where the caller is served
            error = unforeseen
        finally:
            if self._adjusting is not None:
                self._adjusting.cancel()
        if error is not None and not flight.ended:
            flight.fail()
        outbox.close(error)

    def _patience_s(self) -> float:
        """How long another worker is waited for."""
        placement = self._flight.placement
        deadline_s = placement.decision.deadline_s
        if deadline_s is None or placement.policy.otherwise is Otherwise.BEST_EFFORT:
            return MOST_PATIENCE_S
        return min(MOST_PATIENCE_S, max(0.0, placement.receipt_s + deadline_s - self._clock()))

    async def _run(
        self, request: worker_pb2.WorkerServiceGenerateRequest, timeout_s: float | None, outbox: Outbox
    ) -> Exception | None:
        """Relays what one worker sends, or the first of two to send anything. Returns why none completed the
        request.
        """
        flight = self._flight
        stream = self._send(flight.worker, request, timeout_s)
        error: Exception | None = None
        try:
            hedge_s = flight.placement.policy.hedge_s
            if hedge_s is not None and not self._passed.anything:
                stream, head = await self._race(stream, hedge_s, request, timeout_s)
                for response in head:
                    self._take(response, outbox)
            async for response in stream.responses:
                self._take(response, outbox)
            if not flight.ended:
                self._lose(flight.worker, "it ended a stream without completing it")
                error = self._lost()
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.INTERNAL:
                self._fleet.outliers.failed(flight.worker, self._clock())
            error = caller_error(failure, flight.worker.address, self._delivered_tokens)
            if _is_lost(error):
                self._lose(flight.worker, f"{failure.code().name}: {failure.details()}")
            elif self._passed.anything and failure.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                error = self._lost()
        except StreamLostError:
            error = self._lost()
        except asyncio.CancelledError:
            if not stream.is_lost:
                raise
            error = self._lost()
        finally:
            stream.close()
        return error

    def _send(
        self, worker: Worker, request: worker_pb2.WorkerServiceGenerateRequest, timeout_s: float | None
    ) -> Stream:
        self._attempt_id = request.request_id
        self._attempts.append(reasoning_pb2.Attempt(worker=worker.address))
        self._attempt = self._attempts[-1]
        return self._fleet.link(worker).generate(request, timeout_s, self._trace)

    async def _race(
        self,
        first: Stream,
        after_s: float,
        request: worker_pb2.WorkerServiceGenerateRequest,
        timeout_s: float | None,
    ) -> tuple[Stream, Responses]:
        """Has a second worker run the request too when the first yields no token for so long."""
        first_id, first_attempt, first_s = self._attempt_id, self._attempt, self._clock()
        second: Stream | None = None
        place: tuple[Worker, Sent] | None = None

        def begin() -> Stream | None:
            nonlocal second, place
            place = self._reception.hedge(self._flight)
            if place is not None:
                request.request_id = f"{first_id}.hedge"
                second = self._send(place[0], request, timeout_s)
                self._attempt.hedge = True
            return second

        winner = first
        try:
            winner, head = await race(first, after_s, begin)
        finally:
            if place is not None:
                loser_began_s = first_s
                if winner is second:
                    self._flight.move(*place)
                else:
                    place[1].end()
                    self._attempt_id, self._attempt = first_id, first_attempt
                    loser_began_s += after_s
                self._reception.charge_hedge(self._flight, self._clock() - loser_began_s)
        return winner, head

    def _take(self, response: worker_pb2.WorkerServiceGenerateResponse, outbox: Outbox) -> None:
        """Tells the flight and the caller what a worker has sent."""
        flight = self._flight
        worker = flight.worker
        if response.HasField("load"):
            self._roster.take_load(worker, response.load, self._clock())
        event = response.WhichOneof("event")
        if event == "delta":
            self._passed.add(response)
            self._take_delta(response.delta, outbox)
        elif event == "completion":
            now_s = self._clock()
            self.done = _done(response.completion)
            if Ability.TOKEN_IDS not in worker.limits.abilities:
                self._count(response.completion.usage)
            self.reasoning_end = response.completion.reasoning_end
            self._fleet.outliers.answered(worker)
            self.settlement = settlement = flight.end(self.done, now_s)
            if settlement.trial is not None:
                tenant = flight.placement.policy.name
                self._outcomes.remember(tenant, self._request_id, settlement.trial, now_s)
            completion = self._completion(response.completion, settlement)
            outbox.put(reasoning_pb2.GenerateResponse(completion=completion))
        elif event == "started":
            self._passed.start(response.started)
            flight.start(response.started.prompt_tokens)

    def _lost(self) -> RpcError:
        return lost(self._flight.worker.address, self._delivered_tokens)

    def _lose(self, worker: Worker, why: str) -> None:
        """Tells that a worker was lost under this request; of many requests at once the first counts."""
        if worker.available:
            self._fleet.outliers.failed(worker, self._clock())
        self._fleet.link(worker).lose(why)

    def _take_delta(self, delta: generation_pb2.Delta, outbox: Outbox) -> None:
        tokens = delta.token_count or len(delta.token_ids)
        if delta.phase == generation_pb2.PHASE_REASONING:
            self.reasoning_tokens += tokens
            adjustment = self._flight.reason(self._delivered_tokens + tokens, self._clock())
            may_adjust = Ability.ADJUST in self._flight.worker.limits.abilities
            if adjustment is not None and may_adjust and (self._adjusting is None or self._adjusting.done()):
                self._adjusting = asyncio.create_task(self._adjust(adjustment, outbox))
        elif delta.phase == generation_pb2.PHASE_ANSWER:
            for call in delta.tool_calls:
                if call.name:
                    # Unique in the conversation, and the same wherever the request goes on.
                    call.id = f"call_{self._request_id}_{call.index}"
            self.answer_tokens += tokens
            self._flight.answer(self._clock())
        self._delivered_tokens += tokens
        self._attempt.output_tokens += tokens
        outbox.put_delta(delta)

    def _count(self, usage: generation_pb2.TokenUsage) -> None:
        """Takes the completion's counts, of a worker that cannot count exactly before."""
        self.reasoning_tokens, self.answer_tokens = usage.reasoning_tokens, usage.answer_tokens
        self._delivered_tokens = self._attempt.output_tokens = usage.output_tokens

    async def _adjust(self, adjustment: Adjustment, outbox: Outbox) -> None:
        flight, attempt_id = self._flight, self._attempt_id
        until_s, reason_for_s = adjustment.reason_until_s, None
        if until_s is not None:
            reason_for_s = max(0.0, until_s - (self._clock() - flight.placement.receipt_s))
        try:
            in_force = await self._fleet.link(flight.worker).adjust(
                attempt_id, reason_for_s, adjustment.reasoning_tokens
            )
        except grpc.aio.AioRpcError as failure:
            # It has just ended, or goes on as planned.
            log.debug("request %s was not adjusted: %s", self._request_id, failure.details())
            return
        if flight.ended or attempt_id != self._attempt_id:
            return  # it was completed meanwhile, or goes on where nothing was adjusted
        if adjustment.reasoning_tokens is not None:
            # More than asked for, where so many were used meanwhile.
            adjustment = replace(adjustment, reasoning_tokens=in_force)
        flight.adjusted(adjustment)
        budget = wire.budget(flight.decision, elapsed_s=0.0)
        budget.reasoning_tokens = flight.budget_tokens
        if flight.reason_until_s is not None:
            budget.reason_until.CopyFrom(wire.duration(flight.reason_until_s))
        changed = reasoning_pb2.BudgetAdjustment(budget=budget, why=adjustment.why)
        outbox.put(reasoning_pb2.GenerateResponse(adjustment=changed))

    def _completion(
        self, done: worker_pb2.WorkerCompletion, settlement: Settlement
    ) -> reasoning_pb2.Completion:
        return reasoning_pb2.Completion(
            finish_reason=done.finish_reason,
            reasoning_end=done.reasoning_end,
            usage=done.usage,
            timings=done.timings,
            latency=wire.duration(settlement.latency_s),
            objectives=[
                reasoning_pb2.ObjectiveResult(
                    objective=OBJECTIVE[result.objective],
                    promised=wire.duration(result.promised_s),
                    actual=wire.duration(result.actual_s),
                    kept=result.kept,
                )
                for result in settlement.results
            ],
            reopened=done.reopened,
            adjustments=self._flight.adjustments,
            attempts=self._attempts,
            malformed_tool_calls=done.malformed_tool_calls,
        )


def _is_lost(error: Exception) -> bool:
    return isinstance(error, RpcError) and error.code is grpc.StatusCode.UNAVAILABLE


def _done(message: worker_pb2.WorkerCompletion) -> Done:
    timings, usage = message.timings, message.usage
    stopped = None
    if message.reasoning_end in (*STOPPED_BY_ITSELF, *CUT):
        stopped = message.reasoning_end in STOPPED_BY_ITSELF
    return Done(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        answer_tokens=usage.answer_tokens,
        stopped=stopped,
        queue_s=wire.seconds(timings.queue),
        first_token_s=wire.seconds(timings.first_token),
        total_s=wire.seconds(timings.total),
        decode_steps=timings.decode_steps,
        mean_batch_size=timings.mean_batch_size,
        probe_tokens=usage.probe_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
    )
