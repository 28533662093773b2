"""What is noted of each request while it is served: activity, what the shadow would do, the recording."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from types import MappingProxyType

import grpc

from controller.desk.flight import Flight
from controller.planning.decision import Ask, Refusal, RefusedFor
from controller.policy import TenantPolicy
from controller.service.activity import Activities
from controller.service.generation import Generation
from controller.service.reception import RefusedError
from controller.service.recording import Recorder, Row
from controller.service.shadow import ShadowPolicy
from controller.simulation.trace import Arrival, Outcome, ReasoningEnd
from curfew.rpc.errors import RpcError
from curfew.telemetry.logs import concerns
from curfew.telemetry.tracing import Headers, NoTracing, Trace, Tracing
from curfew.v1 import generation_pb2

log = logging.getLogger(__name__)

_REASONING_END = {
    generation_pb2.REASONING_END_NONE: ReasoningEnd.NONE,
    generation_pb2.REASONING_END_NATURAL: ReasoningEnd.NATURAL,
    generation_pb2.REASONING_END_BUDGET: ReasoningEnd.BUDGET,
    generation_pb2.REASONING_END_DEADLINE: ReasoningEnd.DEADLINE,
    generation_pb2.REASONING_END_LOOP: ReasoningEnd.LOOP,
    generation_pb2.REASONING_END_CANCELLED: ReasoningEnd.CANCELLED,
    generation_pb2.REASONING_END_STABLE: ReasoningEnd.STABLE,
}
_REFUSED = {
    RefusedFor.PROMISE: Outcome.REFUSED,
    RefusedFor.PRICE: Outcome.REJECTED,
    RefusedFor.CROWD: Outcome.REJECTED,
}


class Journal:
    """Notes every request of a known tenant that is well-formed."""

    def __init__(
        self,
        clock: Callable[[], float],
        shadow: ShadowPolicy | None = None,
        recorder: Recorder | None = None,
        recorded_labels: Set[str] = frozenset(),
        observers: Sequence[Callable[[Entry, float], None]] = (),
        tracing: Tracing | None = None,
    ) -> None:
        """recorded_labels: names of the labels that are recorded, with their values: a label may tell more
        than numbers do. observers: told of each request once it is over, and when that was. tracing: None
        traces nothing.
        """
        self.activities = Activities(clock())
        self.shadow = shadow
        self.recorder = recorder
        self._clock = clock
        self._recorded_labels = recorded_labels
        self._observers = observers
        self._tracing = tracing or NoTracing()

    @contextmanager
    def entry(
        self,
        request_id: str,
        policy: TenantPolicy,
        labels: Mapping[str, str],
        receipt_s: float,
        trace: Headers = (),
    ) -> Iterator[Entry]:
        """Notes one request from its receipt to its end, however that comes. trace: that it is a part of."""
        entry = Entry(self, request_id, policy, labels, receipt_s, self._tracing.begin(trace, receipt_s))
        concerns(request_id, tenant=policy.name, trace_id=entry.trace.trace_id)
        activity = self.activities[policy.name]
        activity.arrive(receipt_s)
        try:
            yield entry
        except RefusedError as error:
            entry.decided(error.refusal)
            raise
        except RpcError as error:
            entry.failed(full=error.code is grpc.StatusCode.RESOURCE_EXHAUSTED)
            raise
        except Exception:
            entry.failed(full=False)
            raise
        finally:
            activity.end()
            if self.recorder is not None and entry.ask is not None:
                self.recorder.note(self._row(entry, entry.ask))
            if self._observers:
                self._observe(entry)

    def now_s(self) -> float:
        """By the controller's clock."""
        return self._clock()

    def decided(self, entry: Entry, ask: Ask, verdict: Flight | Refusal) -> None:
        """The desk has decided a request."""
        now_s = entry.decided_s = self._clock()
        decision = verdict if isinstance(verdict, Refusal) else verdict.decision
        self.activities[entry.policy.name].decide(decision, now_s - entry.receipt_s)
        if self.shadow is not None:
            self.shadow.compare(entry.policy.name, ask, entry.labels, verdict, now_s)

    def _observe(self, entry: Entry) -> None:
        """Nothing that goes wrong here reaches the request."""
        now_s = self._clock()
        try:
            for observe in self._observers:
                observe(entry, now_s)
        except Exception:
            log.exception("request %s is over and cannot be told of", entry.request_id)

    def _row(self, entry: Entry, ask: Ask) -> Row:
        run, flight = entry.run, entry.flight
        settlement = None if run is None else run.settlement
        prompt, reasoning, answer = _tokens(run, ask)
        labels = {name: value for name, value in entry.labels.items() if name in self._recorded_labels}
        arrival = Arrival(
            arrival_s=0.0,
            tenant=entry.policy.name,
            input_tokens=prompt,
            reasoning_tokens=reasoning,
            answer_tokens=answer,
            reasoning_end=reasoning_end(run),
            labels=MappingProxyType(labels),
            deadline_s=ask.deadline_s,
            mode=ask.mode,
            outcome=entry.outcome,
            latency_s=self._clock() - entry.receipt_s if settlement is None else settlement.latency_s,
            kept=None if settlement is None else settlement.kept,
        )
        if flight is None:
            return Row(entry.receipt_s, arrival, entry.policy.rule, entry.policy.version)
        return Row(
            entry.receipt_s,
            arrival,
            entry.policy.rule,
            entry.policy.version,
            worker=flight.placement.worker.address,
            plan_mode=flight.decision.mode.value,
            budget_tokens=flight.budget_tokens,
            promised_s=flight.decision.deadline_s,
            price=flight.decision.price,
        )


class Entry:
    """One request."""

    def __init__(
        self,
        journal: Journal,
        request_id: str,
        policy: TenantPolicy,
        labels: Mapping[str, str],
        receipt_s: float,
        trace: Trace,
    ) -> None:
        self.request_id = request_id
        self.policy = policy
        self.labels = labels
        self.receipt_s = receipt_s
        self.ask: Ask | None = None
        self.flight: Flight | None = None
        """Its place, if it was given one."""
        self.refusal: Refusal | None = None
        """Why it was not, if the desk refused it."""
        self.run: Generation | None = None
        self.trace = trace
        self.admitted_s: float | None = None
        """When it was known that its tenant may have it."""
        self.planned_s: float | None = None
        """When the desk had looked at it for the first time."""
        self.decided_s: float | None = None
        """When it was given a place or was refused."""
        self._journal = journal
        self._unanswered = Outcome.LEFT

    @property
    def outcome(self) -> Outcome:
        """What came of it, as far as is known."""
        answered = self.run is not None and self.run.settlement is not None
        return Outcome.ANSWERED if answered else self._unanswered

    def admitted(self) -> None:
        """Its tenant may have it."""
        self.admitted_s = self._journal.now_s()

    def planned(self) -> None:
        """The desk has looked at it."""
        self.planned_s = self._journal.now_s()

    def failed(self, full: bool) -> None:
        """It was not answered. full: for want of room."""
        self._unanswered = Outcome.REJECTED if full else Outcome.FAILED

    def decided(self, verdict: Flight | Refusal) -> None:
        """It was given a place, or was refused."""
        if isinstance(verdict, Refusal):
            self.refusal = verdict
            self._unanswered = _REFUSED[verdict.reason]
        else:
            self.flight = verdict
        if self.ask is not None:
            self._journal.decided(self, self.ask, verdict)


def _tokens(run: Generation | None, ask: Ask) -> tuple[int, int, int]:
    """Of the prompt, the reasoning and the answer: as the worker counted them, or as far as they came."""
    if run is None:
        return ask.prompt_tokens, 0, 0
    if run.done is None:
        return ask.prompt_tokens, run.reasoning_tokens, run.answer_tokens
    return run.done.prompt_tokens, run.done.reasoning_tokens, run.done.answer_tokens


def reasoning_end(run: Generation | None) -> ReasoningEnd:
    """Why a request's reasoning ended, as far as is known."""
    if run is None:
        return ReasoningEnd.NONE
    if run.done is None:  # how its reasoning ended was not told, if it did
        return ReasoningEnd.CANCELLED if run.reasoning_tokens else ReasoningEnd.NONE
    return _REASONING_END.get(run.reasoning_end, ReasoningEnd.NONE)
