"""The spans of a request in the controller: its own, and admission, plan and queue below it. Its log line.

Names are those of OpenTelemetry's conventions for generative AI; what they lack is `curfew.…`.
"""

from __future__ import annotations

import logging

from controller.desk import Flight, Settlement
from controller.service.generation import Generation
from controller.service.journal import Entry, reasoning_end
from controller.telemetry.requests import OPERATION, OUTCOMES, PROVIDER, model_of, refused_by
from curfew.telemetry.logs import FIELDS
from curfew.telemetry.tracing import Attributes

log = logging.getLogger(__name__)


def trace_request(entry: Entry, now_s: float) -> None:
    """Builds the spans of a request that is over, from the times that were noted."""
    trace = entry.trace
    model = model_of(entry.flight)
    name = f"{OPERATION} {model}" if model else OPERATION
    outcome = OUTCOMES[entry.outcome]
    if not trace.recorded:
        trace.end(name, now_s, {})
        return
    began_s = entry.receipt_s
    for part, ended_s in (
        ("admission", entry.admitted_s),
        ("plan", entry.planned_s),
        ("queue", entry.decided_s),
    ):
        trace.span(part, began_s, now_s if ended_s is None else ended_s)
        if ended_s is None:  # where it ended, too
            break
        began_s = ended_s
    trace.end(name, now_s, request_facts(entry), outcome if outcome in ("failed", "refused") else "")


def log_request(entry: Entry, now_s: float) -> None:
    """Logs that a request is over, and what came of it."""
    facts = {**request_facts(entry), "curfew.latency_seconds": round(now_s - entry.receipt_s, 6)}
    log.info("request %s", OUTCOMES[entry.outcome], extra={FIELDS: facts})


def request_facts(entry: Entry) -> Attributes:
    """What there is to say of a request that is over, without its content."""
    outcome = OUTCOMES[entry.outcome]
    told: dict[str, str | bool | int | float] = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.response.id": entry.request_id,
        "curfew.tenant": entry.policy.name,
        "curfew.rule": entry.policy.rule,
        "curfew.policy.version": entry.policy.version,
        "curfew.outcome": outcome,
    }
    if outcome == "refused":
        told["curfew.refused_for"] = refused_by(entry)
    if entry.flight is not None:
        told |= _decided(entry.flight)
    if entry.run is not None:
        told["curfew.attempts"] = entry.run.attempts
        if entry.run.settlement is not None:
            told |= _settled(entry.run, entry.run.settlement)
    return told


def _decided(flight: Flight) -> dict[str, str | bool | int | float]:
    decision = flight.decision
    told: dict[str, str | bool | int | float] = {
        "gen_ai.request.model": model_of(flight),
        "curfew.mode": decision.mode.value,
        "curfew.worker": flight.worker.address,
        "curfew.budget.planned_tokens": decision.budget_tokens,
        "curfew.budget.granted_tokens": flight.budget_tokens,
        "curfew.budget.adjustments": flight.adjustments,
        "curfew.promise.probability": decision.promised_probability,
        "curfew.promise.predicted_seconds": decision.predicted_s,
        "curfew.brownout": decision.brownout.value,
        "curfew.price": decision.price,
    }
    if decision.deadline_s is not None:
        told["curfew.promise.deadline_seconds"] = decision.deadline_s
    if flight.first_token_s is not None:
        told["curfew.first_token_seconds"] = flight.first_token_s
    if flight.first_answer_token_s is not None:
        told["curfew.first_answer_token_seconds"] = flight.first_answer_token_s
    return told


def _settled(run: Generation, settlement: Settlement) -> dict[str, str | bool | int | float]:
    done = run.done
    assert done is not None
    return {
        "gen_ai.usage.input_tokens": done.prompt_tokens,
        "gen_ai.usage.output_tokens": done.output_tokens,
        "gen_ai.usage.reasoning.output_tokens": done.reasoning_tokens,
        "curfew.probe_tokens": done.probe_tokens,
        "curfew.reasoning_end": reasoning_end(run).value,
        "curfew.promise.kept": settlement.kept,
    }
