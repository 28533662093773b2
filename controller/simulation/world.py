"""A pool of simulated workers behind the real desk: the code that decides here is the code that serves."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from controller.desk import Adjustment, Desk, Flight, Tenants, Ticket
from controller.desk import Done as DeskDone
from controller.desk.desk import NoWorkerError
from controller.fleet.roster import Roster
from controller.fleet.worker import Worker
from controller.planning.decision import Ask, Decision, Refusal
from controller.planning.speed import Load
from controller.policy import Policy, TenantPolicy
from controller.simulation.job import Done, Grant, Job
from controller.simulation.judge import Judge
from controller.simulation.requests import Request
from controller.simulation.speed import WorkerModel
from controller.simulation.trace import Outcome, ReasoningEnd
from controller.simulation.worker import QueueFullError, SimulatedWorker
from curfew.rpc.durations import duration
from curfew.v1 import worker_pb2

POLL_S = 1.0
"""A controller asks its workers for their descriptions so often."""
PROMPT_SLACK = 1.25
"""By how much more than estimated a prompt is taken to be at most."""


@dataclass(slots=True)
class Record:
    """What came of a request. Times are the simulation's, in seconds; latency_s: receipt to end.

    decision: None of one that was not served; why: it was not, in the planner's words. right: whether its
    answer is; chance: the probability with which such an answer is right.
    """

    request: Request
    policy: TenantPolicy
    arrived_s: float
    outcome: Outcome = Outcome.FAILED
    why: str = ""
    decision: Decision | None = None
    latency_s: float = math.nan
    kept: bool = False
    done: Done | None = None
    chance: float = 0.0
    right: bool = False
    adjustments: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A simulation's outcome. records: in the order of arrival. prices: each second (time, price of a
    slot-second, requests that wait, sequences that run).
    """

    policy: Policy
    records: list[Record]
    prices: list[tuple[float, float, int, int]]


def simulate(
    policy: Policy,
    requests: Sequence[Request],
    model: WorkerModel,
    *,
    workers: int,
    judge: Judge,
    seed: int = 0,
    progress: Callable[[float], None] = lambda now_s: None,
    tenants: Tenants | None = None,
    prompt_of: Callable[[Request], int] = lambda request: request.nature.prompt_tokens,
    reports: bool = False,
) -> Run:
    """Has the requests come, and follows them to their ends. progress: told the simulation's time. tenants:
    what is known of them at the beginning. prompt_of: the prompt tokens that the controller is told. reports:
    callers tell whether answers were right, as soon as they have them.

    The same arguments give the same outcome.
    """
    world = _World(
        policy, requests, [model] * workers, judge, seed, progress, tenants or Tenants(), prompt_of, reports
    )
    world.run()
    return Run(policy, world.records, world.prices)


class _World:
    """The clock, the messages under way, and between them the desk and the workers."""

    def __init__(
        self,
        policy: Policy,
        requests: Sequence[Request],
        models: Sequence[WorkerModel],
        judge: Judge,
        seed: int,
        progress: Callable[[float], None],
        tenants: Tenants,
        prompt_of: Callable[[Request], int],
        reports: bool,
    ) -> None:
        self._tenants, self._prompt_of, self._reports = tenants, prompt_of, reports
        self._policy, self._requests, self._judge, self._progress = policy, requests, judge, progress
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()
        self._open = len(requests)
        self.records: list[Record] = []
        self.prices: list[tuple[float, float, int, int]] = []
        rng = Random(f"curfew-desk-{seed}")
        self._roster = Roster()
        self._desk = Desk(self._roster, tenants, lambda: rng.uniform(-1.0, 1.0))
        self._tickets: dict[Ticket, Record] = {}
        self._woken_s = math.inf
        self._hosts: dict[Worker, _Host] = {}
        for index, model in enumerate(models):
            host = _Host(self, Worker(f"simulated-{index}"), model, Random(f"curfew-worker-{seed}-{index}"))
            self._hosts[host.worker] = host

    def at(self, when_s: float, happen: Callable[[float], None]) -> None:
        """Has something happen at a time."""
        heapq.heappush(self._events, (when_s, next(self._number), happen))

    def run(self) -> None:
        """Until every request has come to its end."""
        for host in self._hosts.values():
            host.describe(0.0)
        self._each_second(0.0)
        self._next_arrival(0)
        events = self._events
        while self._open:
            now_s, _, happen = heapq.heappop(events)
            happen(now_s)

    def _each_second(self, now_s: float) -> None:
        for host in self._hosts.values():
            host.describe(now_s)
        running = sum(host.engine.load.running for host in self._hosts.values())
        price = self._desk.market.pool_price(self._roster.capacity, now_s)
        self.prices.append((now_s, price, self._desk.waiting, running))
        self._progress(now_s)
        self.at(now_s + POLL_S, self._each_second)

    # Requests come, wait, are decided.

    def _next_arrival(self, index: int) -> None:
        if index < len(self._requests):
            request = self._requests[index]
            self.at(request.arrival.arrival_s, partial(self._arrive, request, index))

    def _arrive(self, request: Request, index: int, now_s: float) -> None:
        self._next_arrival(index + 1)
        arrival = request.arrival
        policy = self._policy.tenants[request.tenant].for_labels(arrival.labels)
        record = Record(request, policy, now_s)
        self.records.append(record)
        tokens = self._prompt_of(request)
        ask = Ask(
            prompt_tokens=tokens,
            most_prompt_tokens=int(PROMPT_SLACK * tokens) + 1,
            mode=arrival.mode,
            deadline_s=arrival.deadline_s,
        )
        try:
            ticket = self._desk.arrive(ask, policy, now_s)
        except NoWorkerError:
            self._close(record, Outcome.FAILED, "no worker is available")
            return
        if isinstance(ticket, Refusal):
            self._refuse(record, ticket)
            return
        self._tickets[ticket] = record
        self.decide(now_s)

    def decide(self, now_s: float) -> None:
        """Something has changed that decisions may depend on."""
        for ticket, verdict in self._desk.decide(now_s):
            record = self._tickets.pop(ticket)
            if isinstance(verdict, Refusal):
                self._refuse(record, verdict)
            else:
                record.decision = verdict.decision
                self._hosts[verdict.placement.worker].send(record, verdict, now_s)
        wake_s = self._desk.wake_s()
        if wake_s is not None and (wake_s < self._woken_s or self._woken_s <= now_s):
            self._woken_s = wake_s
            self.at(max(wake_s, now_s), self.decide)

    def _refuse(self, record: Record, refusal: Refusal) -> None:
        rejected = refusal.retry_s is not None
        self._close(record, Outcome.REJECTED if rejected else Outcome.REFUSED, refusal.why)

    def fail(self, record: Record) -> None:
        """A worker had no room for it."""
        self._close(record, Outcome.FAILED, "the worker's queue is full")

    def end(self, record: Record, flight: Flight, done: Done, now_s: float) -> None:
        """A request is answered."""
        settlement = flight.end(_told(done), now_s)
        record.done = done
        record.latency_s = settlement.latency_s
        record.kept = settlement.kept
        record.adjustments = flight.adjustments
        record.chance = self._judge(record.request, done)
        record.right = record.request.luck < record.chance
        if self._reports and settlement.trial is not None:
            self._tenants[record.policy.name].quality.learn(settlement.trial, float(record.right), now_s)
        self._close(record, Outcome.ANSWERED, "")

    def take_load(self, worker: Worker, load: Load, now_s: float) -> None:
        """A worker has told its load."""
        self._roster.take_load(worker, _load_message(load), now_s)

    def known(self, worker: Worker) -> None:
        """A worker has described itself."""
        self._roster.changed(worker)

    def _close(self, record: Record, outcome: Outcome, why: str) -> None:
        record.outcome, record.why = outcome, why
        self._open -= 1


class _Host:
    """A simulated worker at the other end of a connection: messages take their time both ways."""

    def __init__(self, world: _World, worker: Worker, model: WorkerModel, rng: Random) -> None:
        self.worker = worker
        self.engine = SimulatedWorker(model, world.at, self, rng)
        self._world = world
        self._relay_s = model.engine.relay_s / 2  # one way
        self._closing_tokens = model.engine.closing_tokens
        self._description = model.description()
        self._running: dict[Job, tuple[Record, Flight]] = {}
        self._adjusting: set[Job] = set()
        worker.healthy = True

    def describe(self, now_s: float) -> None:
        """It answers DescribeWorker."""
        self._description.load.CopyFrom(_load_message(self.engine.load, self.engine.decode_step_s))
        self.worker.take_description(self._description, now_s)
        self._world.known(self.worker)

    def send(self, record: Record, flight: Flight, now_s: float) -> None:
        """The controller sends it a request."""
        decision, policy = flight.decision, record.policy
        until_s, deadline_s = decision.reason_until_s, decision.deadline_s
        grant = Grant(
            budget_tokens=decision.budget_tokens,
            grace_tokens=decision.grace_tokens,
            answer_tokens=decision.answer_tokens,
            reason_until_s=math.inf if until_s is None else record.arrived_s + until_s,
            priority=policy.priority,
            deadline_s=math.inf if deadline_s is None else record.arrived_s + deadline_s,
            reserve_tokens=decision.reserve_tokens,
        )
        job = Job(record.request.nature, grant, self._closing_tokens)
        self._running[job] = record, flight
        self._world.at(now_s + self._one_way_s(record), partial(self._submit, job))

    def _one_way_s(self, record: Record) -> float:
        return self._relay_s * (0.5 + record.request.haste)

    def _submit(self, job: Job, now_s: float) -> None:
        try:
            self.engine.submit(job, now_s)
        except QueueFullError:
            record, flight = self._running.pop(job)
            flight.fail()
            self._world.fail(record)

    # What the engine tells, on its way to the controller.

    def started(self, job: Job, load: Load, now_s: float) -> None:
        """See `Listener`."""
        record, flight = self._running[job]

        def hear(when_s: float) -> None:
            flight.start(job.nature.prompt_tokens)
            self._take_load(load, when_s)

        self._world.at(now_s + self._one_way_s(record), hear)

    def reasoned(self, tokens: list[tuple[Job, int]], load: Load, now_s: float) -> None:
        """See `Listener`."""

        def hear(when_s: float) -> None:
            for job, count in tokens:
                running = self._running.get(job)
                if running is not None:
                    adjustment = running[1].reason(count, when_s)
                    if adjustment is not None and job not in self._adjusting:
                        self._adjust(job, running[1], adjustment, when_s)
            self._take_load(load, when_s)

        self._world.at(now_s + self._relay_s, hear)

    def answered(self, job: Job, now_s: float) -> None:
        """See `Listener`."""
        record, flight = self._running[job]
        self._world.at(now_s + self._one_way_s(record), flight.answer)

    def finished(self, job: Job, done: Done, load: Load, now_s: float) -> None:
        """See `Listener`."""
        record, _ = self._running[job]

        def hear(when_s: float) -> None:
            record, flight = self._running.pop(job)
            self._world.end(record, flight, done, when_s)
            self._take_load(load, when_s)

        self._world.at(now_s + self._one_way_s(record), hear)

    def _take_load(self, load: Load, now_s: float) -> None:
        self._world.take_load(self.worker, load, now_s)
        self._world.decide(now_s)

    def _adjust(self, job: Job, flight: Flight, adjustment: Adjustment, now_s: float) -> None:
        """One adjustment of a request at a time: there and back."""
        until_s = adjustment.reason_until_s
        at_s = None if until_s is None else flight.placement.receipt_s + max(until_s, 0.0)
        self._adjusting.add(job)

        def reach(when_s: float) -> None:
            self.engine.adjust(job, adjustment.reasoning_tokens, at_s, when_s)
            self._world.at(when_s + self._relay_s, settle)

        def settle(when_s: float) -> None:
            self._adjusting.discard(job)
            if not flight.ended:
                flight.adjusted(adjustment)

        self._world.at(now_s + self._relay_s, reach)


def _told(done: Done) -> DeskDone:
    """As the controller reads it."""
    stopped = {ReasoningEnd.NATURAL: True, ReasoningEnd.BUDGET: False, ReasoningEnd.DEADLINE: False}
    return DeskDone(
        prompt_tokens=done.prompt_tokens,
        output_tokens=done.reasoning_tokens + done.forced_tokens + done.answer_tokens,
        reasoning_tokens=done.reasoning_tokens,
        answer_tokens=done.answer_tokens,
        stopped=stopped.get(done.reasoning_end),
        queue_s=done.queue_s,
        first_token_s=done.first_token_s,
        total_s=done.total_s,
        decode_steps=done.decode_steps,
        mean_batch_size=done.mean_batch_size,
    )


def _load_message(load: Load, step_s: float | None = None) -> worker_pb2.WorkerLoad:
    return worker_pb2.WorkerLoad(
        running=load.running,
        waiting=load.waiting,
        prefill_backlog_tokens=load.prefill_backlog_tokens,
        free_slots=load.free_slots,
        step=None if step_s is None else duration(step_s),
    )
