"""The `curfew` object of an answer: what was decided and promised, and what was kept."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from controller import wire
from curfew.v1 import generation_pb2, reasoning_pb2

Json = dict[str, object]


def plan(message: reasoning_pb2.Plan) -> Json:
    """The decision. Times in milliseconds from receipt, lengths in tokens; null is what there is none of."""
    budget = message.budget
    return {
        "request_id": message.request_id,
        "policy_version": message.policy_version,
        "tenant": message.tenant,
        "rule": message.rule,
        "mode": _word(generation_pb2.Mode.Name(message.mode), "MODE_"),
        "budget": {
            "reasoning_tokens": budget.reasoning_tokens,
            "grace_tokens": budget.grace_tokens,
            "answer_tokens": budget.answer_tokens,
            "reason_until_ms": _ms(budget.reason_until) if budget.HasField("reason_until") else None,
        },
        "deadline_ms": _ms(message.deadline) if message.HasField("deadline") else None,
        "target_share": message.target_share,
        "predicted_latency_ms": _ms(message.predicted_latency),
        "promised_probability": message.promised_probability,
        "why": message.why,
    }


def outcome(message: reasoning_pb2.Completion) -> Json:
    """What came of it."""
    return {
        "reasoning_end": _word(generation_pb2.ReasoningEnd.Name(message.reasoning_end), "REASONING_END_"),
        "latency_ms": _ms(message.latency),
        "kept": all(result.kept for result in message.objectives),
        "objectives": [
            {
                "objective": _word(reasoning_pb2.Objective.Name(result.objective), "OBJECTIVE_"),
                "promised_ms": _ms(result.promised),
                "actual_ms": _ms(result.actual),
                "kept": result.kept,
            }
            for result in message.objectives
        ],
        "forced_tokens": message.usage.forced_tokens,
        "answer_tokens": message.usage.answer_tokens,
        "adjustments": message.adjustments,
        "workers": [attempt.worker for attempt in message.attempts],
        "malformed_tool_calls": [
            {"index": call.index, "text": call.text, "why": call.why} for call in message.malformed_tool_calls
        ],
    }


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _ms(message: Duration) -> float:
    return round(wire.seconds(message) * 1000, 3)
