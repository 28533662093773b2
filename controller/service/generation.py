"""One request's stream, from the worker's events to the caller's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from controller import wire
from controller.fleet import Fleet, Sent
from controller.fleet.link import GenerateCall
from controller.planning.decision import Mode
from controller.planning.in_flight import Watch
from controller.planning.speed import Observation
from controller.policy import Objectives
from controller.policy.units import format_duration as shown
from controller.service.outbox import Outbox
from controller.service.placement import Placement
from controller.service.tenants import Tenant
from controller.service.upstream import caller_error, lost
from curfew.v1 import generation_pb2, reasoning_pb2, worker_pb2

log = logging.getLogger(__name__)

STOPPED_BY_ITSELF = (generation_pb2.REASONING_END_NATURAL, generation_pb2.REASONING_END_LOOP)
CUT = (generation_pb2.REASONING_END_BUDGET, generation_pb2.REASONING_END_DEADLINE)


class Generation:
    """Reads a worker's stream to its end, whatever the caller does meanwhile, and settles: what was promised
    against what came, what the worker's speed and the tenant's lengths turned out to be.

    Times are seconds from receipt of the request. Per delta it does as little as it can.
    """

    def __init__(
        self,
        request_id: str,
        placement: Placement,
        objectives: Objectives,
        tenant: Tenant,
        fleet: Fleet,
        sent: Sent,
        receipt_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._request_id = request_id
        self._placement = placement
        self._objectives = objectives
        self._tenant = tenant
        self._fleet = fleet
        self._sent = sent
        self._worker = placement.link.worker
        self._receipt_s = receipt_s
        self._clock = clock
        self._first_token_s: float | None = None
        self._first_answer_token_s: float | None = None
        self._delivered_tokens = 0
        decision = placement.decision
        self._watch: Watch | None = None
        if decision.course is not None and decision.reason_until_s is not None:
            self._watch = Watch(decision.course, decision.reason_until_s)
        self._adjustments = 0
        self._adjusting: asyncio.Task[None] | None = None
        self.ended = False
        """Whether the request was answered or failed, and was counted as such."""

    async def relay(self, call: GenerateCall, outbox: Outbox) -> None:
        """Moves the worker's events to the outbox and closes it, with an error when the worker failed."""
        error: Exception | None = None
        try:
            async for response in call:
                if response.HasField("load"):
                    self._fleet.take_load(self._worker, response.load)
                event = response.WhichOneof("event")
                if event == "delta":
                    self._take_delta(response.delta, outbox)
                elif event == "completion":
                    outbox.put(reasoning_pb2.GenerateResponse(completion=self._settle(response.completion)))
                elif event == "started":
                    self._sent.start()
                    exact = response.started.prompt_tokens
                    self._tenant.lengths.learn_prompt(self._placement.ask.prompt_tokens, exact)
            if not self.ended:
                error = lost(self._worker.address, self._delivered_tokens)
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.UNAVAILABLE:
                self._placement.link.lose(f"{failure.code().name}: {failure.details()}")
            error = caller_error(failure, self._worker.address, self._delivered_tokens)
        except Exception as unforeseen:  # raised again where the caller is served
            error = unforeseen
        finally:
            if self._adjusting is not None:
                self._adjusting.cancel()
        if error is not None and not self.ended:
            self.ended = True
            self._tenant.standing.note_failed()
        outbox.close(error)

    def _take_delta(self, delta: generation_pb2.Delta, outbox: Outbox) -> None:
        if self._first_answer_token_s is None:
            now_s = self._clock() - self._receipt_s
            if self._first_token_s is None:
                self._first_token_s = now_s
            if delta.phase == generation_pb2.PHASE_ANSWER:
                self._first_answer_token_s = now_s
            elif delta.phase == generation_pb2.PHASE_REASONING and self._watch is not None:
                self._look(self._watch, self._delivered_tokens + len(delta.token_ids), now_s, outbox)
        self._delivered_tokens += len(delta.token_ids)
        outbox.put_delta(delta)

    def _look(self, watch: Watch, reasoning_tokens: int, now_s: float, outbox: Outbox) -> None:
        """Moves the end of the reasoning where its pace asks for it; one change at a time."""
        until_s = watch.look(reasoning_tokens, now_s)
        if until_s is not None and (self._adjusting is None or self._adjusting.done()):
            self._adjusting = asyncio.create_task(self._adjust(watch, until_s, outbox))

    async def _adjust(self, watch: Watch, until_s: float, outbox: Outbox) -> None:
        elapsed_s = self._clock() - self._receipt_s
        try:
            await self._placement.link.move_reasoning_end(self._request_id, max(0.0, until_s - elapsed_s))
        except grpc.aio.AioRpcError as failure:
            # It has just ended, or goes on as planned.
            log.debug("request %s was not adjusted: %s", self._request_id, failure.details())
            return
        moved = "earlier" if until_s < watch.reason_until_s else "later"
        watch.reason_until_s = until_s
        self._adjustments += 1
        budget = wire.budget(self._placement.decision, elapsed_s=0.0)
        budget.reason_until.CopyFrom(wire.duration(until_s))
        why = (
            f"{shown(watch.step_s)} per token instead of {shown(watch.planned_step_s)}: "
            f"reasoning ends {moved}, {shown(until_s)} from receipt"
        )
        adjustment = reasoning_pb2.BudgetAdjustment(budget=budget, why=why)
        outbox.put(reasoning_pb2.GenerateResponse(adjustment=adjustment))

    def _settle(self, done: worker_pb2.WorkerCompletion) -> reasoning_pb2.Completion:
        """Learns from a completion, counts it, and tells the caller what came of the promises."""
        now_s = self._clock()
        latency_s = now_s - self._receipt_s
        self.ended = True
        self._learn(done, latency_s, now_s)
        decision = self._placement.decision
        held = latency_s <= decision.predicted_s
        self._tenant.calibration.note(decision.share, held)
        results = self._results(done.usage.output_tokens, latency_s)
        self._tenant.standing.note_answered(
            all(result.kept for result in results),
            held,
            decision.promised_probability,
            latency_s,
            done.usage.output_tokens,
            done.usage.reasoning_tokens,
        )
        return reasoning_pb2.Completion(
            finish_reason=done.finish_reason,
            reasoning_end=done.reasoning_end,
            usage=done.usage,
            timings=done.timings,
            latency=wire.duration(latency_s),
            objectives=results,
            reopened=done.reopened,
            adjustments=self._adjustments,
        )

    def _learn(self, done: worker_pb2.WorkerCompletion, latency_s: float, now_s: float) -> None:
        timings, usage = done.timings, done.usage
        total_s = wire.seconds(timings.total)
        service_s = total_s - wire.seconds(timings.queue)
        decode_s = total_s - wire.seconds(timings.first_token)
        seen = Observation(
            prompt_tokens=usage.prompt_tokens,
            start_s=latency_s - decode_s,
            decode_s=decode_s,
            decode_steps=timings.decode_steps,
            mean_batch_size=timings.mean_batch_size,
            service_s=service_s,
        )
        self._worker.learn(self._placement.expected, seen, now_s)
        self._tenant.lengths.learn_answer(usage.answer_tokens, now_s)
        if self._placement.decision.mode is Mode.THINK and done.reasoning_end in (*STOPPED_BY_ITSELF, *CUT):
            stopped = done.reasoning_end in STOPPED_BY_ITSELF
            self._tenant.lengths.learn_reasoning(usage.reasoning_tokens, stopped)

    def _results(self, output_tokens: int, latency_s: float) -> list[reasoning_pb2.ObjectiveResult]:
        """Each objective of the tenant, and the caller's deadline, with what came of it."""
        first_s = latency_s if self._first_token_s is None else self._first_token_s
        first_answer_s = latency_s if self._first_answer_token_s is None else self._first_answer_token_s
        per_token_s = (latency_s - first_s) / max(1, output_tokens - 1)
        objectives = self._objectives
        pairs = (
            (reasoning_pb2.OBJECTIVE_DEADLINE, self._placement.decision.deadline_s, latency_s),
            (reasoning_pb2.OBJECTIVE_FIRST_TOKEN, objectives.first_token_s, first_s),
            (reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN, objectives.first_answer_token_s, first_answer_s),
            (reasoning_pb2.OBJECTIVE_PER_TOKEN, objectives.per_token_s, per_token_s),
        )
        return [
            reasoning_pb2.ObjectiveResult(
                objective=objective,
                promised=wire.duration(promised_s),
                actual=wire.duration(actual_s),
                kept=actual_s <= promised_s,
            )
            for objective, promised_s, actual_s in pairs
            if promised_s is not None
        ]
