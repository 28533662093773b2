"""What is counted of each request once it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controller.desk import Flight, Settlement
from controller.planning.decision import RefusedFor
from controller.service.generation import Generation
from controller.service.journal import Entry, reasoning_end
from controller.simulation.trace import Outcome
from curfew.telemetry import controller_metrics as metrics
from curfew.telemetry.metric import Counts, Histograms, Reading

OPERATION, PROVIDER = "chat", "curfew"
"""What the conventions for generative AI call what is done, and who does it."""

OUTCOMES = {
    Outcome.ANSWERED: "answered",
    Outcome.REFUSED: "refused",
    Outcome.REJECTED: "refused",
    Outcome.FAILED: "failed",
    Outcome.LEFT: "left",
}


class RequestMetrics:
    """Counts requests, each once, at its end: some microseconds for each, and nothing for a token.

    A counter never falls: a tenant that gets metrics of its own, or loses them, goes on under another name.
    """

    def __init__(self, label: Callable[[str], str]) -> None:
        """label: what stands for a tenant."""
        self._label = label
        self._requests = Counts(metrics.REQUESTS)
        self._refusals = Counts(metrics.REFUSALS)
        self._decisions = Counts(metrics.DECISIONS)
        self._kept = Counts(metrics.KEPT)
        self._promised = Counts(metrics.PROMISED)
        self._held = Counts(metrics.PREDICTIONS_HELD)
        self._tokens = Counts(metrics.TOKENS)
        self._ends = Counts(metrics.REASONING_ENDS)
        self._adjustments = Counts(metrics.ADJUSTMENTS)
        self._failovers = Counts(metrics.FAILOVERS)
        self._hedges = Counts(metrics.HEDGES)
        self._duration = Histograms(metrics.DURATION)
        self._first_token = Histograms(metrics.FIRST_TOKEN)
        self._per_token = Histograms(metrics.PER_TOKEN)
        self._first_answer_token = Histograms(metrics.FIRST_ANSWER_TOKEN)
        self._granted = Histograms(metrics.BUDGET_GRANTED)
        self._used = Histograms(metrics.BUDGET_USED)

    def note(self, entry: Entry, now_s: float) -> None:
        """A request is over."""
        tenant, flight, run = self._label(entry.policy.name), entry.flight, entry.run
        outcome = OUTCOMES[entry.outcome]
        self._requests.add(1, tenant, outcome)
        if outcome == "refused":
            self._refusals.add(1, tenant, refused_by(entry))
        if run is not None:
            self._failovers.add(max(0, run.attempts - run.hedges - 1), tenant)
            self._hedges.add(run.hedges, tenant)
        if flight is not None:
            self._decisions.add(1, tenant, flight.decision.brownout.value)
            self._adjustments.add(flight.adjustments, tenant)
        if flight is not None and run is not None and run.settlement is not None:
            self._answered(tenant, entry.trace.trace_id, flight, run, run.settlement)
        elif outcome != "left":
            labels = (tenant, OPERATION, PROVIDER, model_of(flight), outcome)
            self._duration.observe(labels, now_s - entry.receipt_s, entry.trace.trace_id)

    def expect(self, tenant: str) -> None:
        """Has a tenant's counts begin at 0, so that the first request is seen as a rise."""
        for outcome in sorted(set(OUTCOMES.values())):
            self._requests.add(0, tenant, outcome)
        for reason in (*(refused.value for refused in RefusedFor), "limit"):
            self._refusals.add(0, tenant, reason)
        for counts in (self._kept, self._promised, self._held, self._failovers, self._hedges):
            counts.add(0, tenant)

    def read(self) -> Iterator[Reading]:
        """All of them."""
        for kept in (
            *(self._requests, self._refusals, self._decisions, self._kept, self._promised, self._held),
            *(self._tokens, self._ends, self._adjustments, self._failovers, self._hedges),
            *(self._duration, self._first_token, self._per_token, self._first_answer_token),
            *(self._granted, self._used),
        ):
            yield from kept.read()

    def _answered(
        self, tenant: str, trace_id: str, flight: Flight, run: Generation, settlement: Settlement
    ) -> None:
        done, latency_s = run.done, settlement.latency_s
        assert done is not None
        decision = flight.decision
        self._kept.add(settlement.kept, tenant)
        self._promised.add(decision.promised_probability, tenant)
        self._held.add(latency_s <= decision.predicted_s, tenant)
        for kind, tokens in (
            ("prompt", done.prompt_tokens),
            ("reasoning", done.reasoning_tokens),
            ("answer", done.output_tokens - done.reasoning_tokens),
            ("probe", done.probe_tokens),
        ):
            self._tokens.add(tokens, tenant, kind)
        self._ends.add(1, tenant, reasoning_end(run).value)
        served = (tenant, OPERATION, PROVIDER, model_of(flight))
        first_s = latency_s if flight.first_token_s is None else flight.first_token_s
        self._duration.observe((*served, ""), latency_s, trace_id)
        self._first_token.observe(served, first_s, trace_id)
        if done.output_tokens > 1:
            self._per_token.observe(served, (latency_s - first_s) / (done.output_tokens - 1), trace_id)
        if flight.first_answer_token_s is not None:
            self._first_answer_token.observe((tenant,), flight.first_answer_token_s, trace_id)
        self._granted.observe((tenant,), flight.budget_tokens, trace_id)
        self._used.observe((tenant,), done.reasoning_tokens, trace_id)


def model_of(flight: Flight | None) -> str:
    """The model that a request runs on; empty before it has a place."""
    return "" if flight is None else flight.worker.limits.model


def refused_by(entry: Entry) -> str:
    """Why a request was refused: one of the desk's reasons, its tenant's limit, or its worker's queue."""
    if entry.refusal is not None:
        return entry.refusal.reason.value
    return "limit" if entry.flight is None else "worker"
