"""One request in flight: followed, re-budgeted, settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from controller.desk.tenants import Tenant
from controller.fleet.outlook import Size
from controller.fleet.roster import Sent
from controller.fleet.worker import Worker
from controller.planning.decision import Ask, Decision, Mode
from controller.planning.in_flight import LOOK_S, LOOK_TOKENS, Watch
from controller.planning.outcomes import Ended, Trial
from controller.planning.planner import Prospect
from controller.planning.speed import Observation, SpeedEstimate
from controller.policy import Objectives, TenantPolicy
from controller.policy.units import format_duration as shown

LEAST_PRICE_CHANGE = 1.25
"""A running request's budget is looked at anew when the price has changed by this factor: less is noise."""
LEAST_BUDGET_CHANGE = 8
"""Tokens by which a budget must change to be moved."""
SETTLE_S = 0.5
"""A request's budget stays at least so long as it is between changes of price."""


class Objective(Enum):
    """A time that a tenant is promised."""

    DEADLINE = "deadline"
    FIRST_TOKEN = "first_token"
    FIRST_ANSWER_TOKEN = "first_answer_token"
    PER_TOKEN = "per_token"


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A change of a running request's budget.

    reason_until_s: when its reasoning must end, from receipt; None leaves that as it is. reasoning_tokens:
    its budget; None leaves it.
    """

    why: str
    reason_until_s: float | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker says of a request that it has completed.

    stopped: whether its reasoning ended by itself; None when it did not reason, or that cannot be told.
    queue_s, first_token_s, total_s: from the worker's receipt. decode_steps, mean_batch_size: of the steps
    after the first token. probe_tokens: of answer probes, beside the output. cached_prompt_tokens: of the
    prompt, found computed already.
    """

    prompt_tokens: int
    output_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    stopped: bool | None
    queue_s: float
    first_token_s: float
    total_s: float
    decode_steps: int
    mean_batch_size: float
    probe_tokens: int = 0
    cached_prompt_tokens: int = 0

    @property
    def slot_s(self) -> float:
        """Slot-seconds that it took: its own, and about those of its probes."""
        step_s = (self.total_s - self.first_token_s) / max(1, self.decode_steps)
        return self.total_s - self.queue_s + self.probe_tokens * step_s


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an objective."""

    objective: Objective
    promised_s: float
    actual_s: float

    @property
    def kept(self) -> bool:
        """Whether the promise was."""
        return self.actual_s <= self.promised_s


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a request was promised, and what came.

    trial: what a report of its answer's quality would be learnt for; None when it cannot be told how its
    reasoning ended.
    """

    latency_s: float
    results: tuple[Result, ...]
    trial: Trial | None

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(result.kept for result in self.results)


@dataclass(frozen=True, slots=True)
class Placement:
    """A request that was given a place. expected: the worker's speed that the decision counted on. receipt_s:
    when it arrived, by the clock.
    """

    ask: Ask
    policy: TenantPolicy
    worker: Worker
    expected: SpeedEstimate
    prospect: Prospect
    decision: Decision
    receipt_s: float


class Flight:
    """Follows one request from its dispatch to its end, which is exactly one of `end`, `fail` and `leave`.

    Times given are the clock's; times told are seconds from receipt of the request.
    """

    def __init__(
        self,
        placement: Placement,
        tenant: Tenant,
        sent: Sent,
        price: Callable[[float], float],
        closed: Callable[[float], None],
    ) -> None:
        """price: of a slot-second for the tenant, at a time. closed: told once that this has ended, with the
        slot-seconds that it took.
        """
        self.placement = placement
        self.worker = placement.worker
        """Where it runs."""
        self.adjustments = 0
        self.ended = False
        self._tenant = tenant
        self._sent = sent
        self._moved = False
        self._price = price
        self._closed = closed
        self.first_token_s: float | None = None
        """When it came."""
        self.first_answer_token_s: float | None = None
        """When that came."""
        decision = placement.decision
        self.budget_tokens = decision.budget_tokens
        """In force."""
        self._watch: Watch | None = None
        if decision.course is not None and decision.reason_until_s is not None:
            self._watch = Watch(decision.course, decision.reason_until_s)
        self._looked_s = 0.0
        self._looked_tokens = 0
        self._settled_price = decision.price
        self._settled_s = 0.0

    @property
    def decision(self) -> Decision:
        """What was decided at the start."""
        return self.placement.decision

    @property
    def reason_until_s(self) -> float | None:
        """When reasoning is told to end, as is in force."""
        return self._watch.reason_until_s if self._watch is not None else self.decision.reason_until_s

    def move(self, worker: Worker, sent: Sent) -> None:
        """Its worker was lost, or slower than another, at which it goes on."""
        self._sent.end()
        self.worker, self._sent = worker, sent
        self._moved = True
        if self._watch is not None:
            self._watch.restart()

    def start(self, prompt_tokens: int) -> None:
        """The worker has begun, and has counted the prompt."""
        self._sent.start()
        self._tenant.lengths.learn_prompt(self.placement.ask.prompt_tokens, prompt_tokens)

    def reason(self, reasoning_tokens: int, now_s: float) -> Adjustment | None:
        """So many reasoning tokens have come in all. Returns a better budget if there is one that matters."""
        elapsed_s = now_s - self.placement.receipt_s
        if self.first_token_s is None:
            self.first_token_s = elapsed_s
        if self._watch is not None:
            until_s = self._watch.look(reasoning_tokens, elapsed_s)
            if until_s is not None:
                return self._moved_end(self._watch, until_s)
        if reasoning_tokens - self._looked_tokens < LOOK_TOKENS and elapsed_s - self._looked_s < LOOK_S:
            return None
        self._looked_tokens, self._looked_s = reasoning_tokens, elapsed_s
        return self._rebudget(reasoning_tokens, now_s)

    def answer(self, now_s: float) -> None:
        """Tokens of the answer have come."""
        if self.first_answer_token_s is None:
            self.first_answer_token_s = now_s - self.placement.receipt_s
            if self.first_token_s is None:
                self.first_token_s = self.first_answer_token_s

    def adjusted(self, adjustment: Adjustment) -> None:
        """The worker has taken an adjustment."""
        self.adjustments += 1
        if adjustment.reason_until_s is not None and self._watch is not None:
            self._watch.reason_until_s = adjustment.reason_until_s
        if adjustment.reasoning_tokens is not None:
            self.budget_tokens = adjustment.reasoning_tokens

    def end(self, done: Done, now_s: float) -> Settlement:
        """The worker has completed it: learns from it, counts it, and tells what came of the promises."""
        latency_s = now_s - self.placement.receipt_s
        self._learn(done, latency_s, now_s)
        decision, tenant = self.decision, self._tenant
        held = latency_s <= decision.predicted_s
        tenant.calibration.note(decision.share, held)
        if decision.deadline_s is not None:
            tenant.calibration.note_promise(decision.promised_probability, latency_s <= decision.deadline_s)
        results = tuple(self._results(done.output_tokens, latency_s))
        settlement = Settlement(latency_s, results, self._trial(done))
        tenant.standing.note_answered(
            settlement.kept,
            held,
            decision.promised_probability,
            latency_s,
            done.output_tokens,
            done.reasoning_tokens,
            done.probe_tokens,
        )
        self._close(done.slot_s)
        return settlement

    def fail(self) -> None:
        """It failed, or was refused by the worker."""
        self._tenant.standing.note_failed()
        self._close(0.0)

    def leave(self) -> None:
        """Its caller has left. Has no effect when it has ended already."""
        if not self.ended:
            self._tenant.standing.note_left()
            self._close(0.0)

    def _close(self, slot_s: float) -> None:
        assert not self.ended
        self.ended = True
        self._sent.end()
        self._closed(slot_s)

    def _moved_end(self, watch: Watch, until_s: float) -> Adjustment:
        moved = "earlier" if until_s < watch.reason_until_s else "later"
        why = (
            f"{shown(watch.step_s)} per token instead of {shown(watch.planned_step_s)}: "
            f"reasoning ends {moved}, {shown(until_s)} from receipt"
        )
        return Adjustment(why, reason_until_s=until_s)

    def _rebudget(self, reasoning_tokens: int, now_s: float) -> Adjustment | None:
        """What the price of now asks for, where it differs from the one that the budget was made at."""
        if now_s - self.placement.receipt_s < self._settled_s + SETTLE_S:
            return None
        price, settled = self._price(now_s), self._settled_price
        if (
            price == settled
            or 1 / LEAST_PRICE_CHANGE < (price / settled if settled else 0) < LEAST_PRICE_CHANGE
        ):
            return None
        self._settled_price, self._settled_s = price, now_s - self.placement.receipt_s
        wanted = self.placement.prospect.rebudget(price, reasoning_tokens)
        budget = min(wanted, self.decision.reserve_tokens)
        if abs(budget - self.budget_tokens) < LEAST_BUDGET_CHANGE:
            return None
        changed = "dearer" if price > settled else "cheaper"
        return Adjustment(f"the pool has become {changed}: budget {budget}", reasoning_tokens=budget)

    def _learn(self, done: Done, latency_s: float, now_s: float) -> None:
        decode_s = done.total_s - done.first_token_s
        seen = Observation(
            prompt_tokens=done.prompt_tokens,
            start_s=latency_s - decode_s,
            decode_s=decode_s,
            decode_steps=done.decode_steps,
            mean_batch_size=done.mean_batch_size,
            service_s=done.total_s - done.queue_s,
        )
        ask = self.placement.ask
        if not self._moved:  # else its times are of parts of it
            self.worker.learn(self.placement.expected, seen, now_s)
            size = Size(done.prompt_tokens, done.output_tokens)
            self._sent.learn(size, ask.prefix, done.cached_prompt_tokens)
        lengths = self._tenant.lengths
        asked = ask.prompt_tokens
        lengths.learn_answer(done.answer_tokens, now_s, asked)
        if self.decision.mode is Mode.THINK and done.stopped is not None:
            lengths.learn_reasoning(done.reasoning_tokens, done.stopped, asked)

    def _trial(self, done: Done) -> Trial | None:
        if self.decision.mode is Mode.NO_THINK:
            ended = Ended.WITHOUT
        elif done.stopped is None:
            return None
        else:
            ended = Ended.STOPPED if done.stopped else Ended.CUT
        stops = self.placement.prospect.forecast.lengths.reasoning
        return Trial.of(self.placement.policy.rule, ended, done.reasoning_tokens, stops)

    def _results(self, output_tokens: int, latency_s: float) -> list[Result]:
        """Each objective of the tenant, and the caller's deadline, with what came of it."""
        first_s = latency_s if self.first_token_s is None else self.first_token_s
        first_answer_s = latency_s if self.first_answer_token_s is None else self.first_answer_token_s
        per_token_s = (latency_s - first_s) / max(1, output_tokens - 1)
        objectives: Objectives = self.placement.policy.objectives
        pairs = (
            (Objective.DEADLINE, self.decision.deadline_s, latency_s),
            (Objective.FIRST_TOKEN, objectives.first_token_s, first_s),
            (Objective.FIRST_ANSWER_TOKEN, objectives.first_answer_token_s, first_answer_s),
            (Objective.PER_TOKEN, objectives.per_token_s, per_token_s),
        )
        return [
            Result(objective, promised_s, actual_s)
            for objective, promised_s, actual_s in pairs
            if promised_s is not None
        ]
