"""Where a request runs and what it may spend there."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2

from controller import wire
from controller.fleet import Fleet
from controller.fleet.link import Link
from controller.planning.calibration import Calibration
from controller.planning.decision import Ask, Decision, Refusal
from controller.planning.lengths import LengthModel
from controller.planning.planner import plan
from controller.planning.speed import SpeedEstimate
from controller.policy import TenantPolicy
from curfew.rpc.errors import RpcError, reason, retry_after
from curfew.v1 import reasoning_pb2

FORMAT_BYTES = 24
"""Added to the text for each turn's chat format, and once more for the answer's."""
ESTIMATE_SLACK = 1.25
"""By how much more than estimated a prompt is taken to be at most, unless its bytes are fewer: no token of a
byte-level vocabulary is less than a byte."""

TIMEOUT_ROUNDING = 1.01
"""gRPC sends a timeout with two to three digits, rounded up: a caller may give up this much sooner."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A planned request. `expected` is the worker's speed that the plan counted on."""

    link: Link
    expected: SpeedEstimate
    ask: Ask
    decision: Decision


def place(
    request: reasoning_pb2.GenerateRequest,
    tenant: TenantPolicy,
    lengths: LengthModel,
    calibration: Calibration,
    fleet: Fleet,
    time_remaining_s: float | None,
    now_s: float,
) -> Placement:
    """Chooses a worker and plans the request for it; sends nothing.

    time_remaining_s: of the call's own deadline. Raises RpcError: UNAVAILABLE without a worker,
    FAILED_PRECONDITION when the plan is refused.
    """
    link = fleet.choose()
    if link is None:
        raise RpcError(
            grpc.StatusCode.UNAVAILABLE, "no worker is available", retry_after(1.0), reason("NO_WORKER")
        )
    worker = link.worker
    ask = _ask(request, lengths, worker.limits.bytes_per_token, time_remaining_s)
    expected = worker.estimate(ask.prompt_tokens, now_s)
    decision = plan(
        ask,
        tenant,
        lengths.estimate(now_s),
        expected,
        worker.limits.max_sequence_tokens,
        level=calibration.level(tenant.objectives.share),
    )
    if isinstance(decision, Refusal):
        raise _refused(tenant.name, decision)
    return Placement(link, expected, ask, decision)


def _ask(
    request: reasoning_pb2.GenerateRequest,
    lengths: LengthModel,
    bytes_per_token: float,
    time_remaining_s: float | None,
) -> Ask:
    text_bytes = FORMAT_BYTES + sum(len(turn.content.encode()) + FORMAT_BYTES for turn in request.messages)
    estimated = lengths.prompt_tokens(text_bytes, bytes_per_token)
    wishes = request.wishes
    deadlines = [wire.seconds(wishes.deadline)] if wishes.HasField("deadline") else []
    if time_remaining_s is not None:
        deadlines.append(time_remaining_s / TIMEOUT_ROUNDING)
    return Ask(
        prompt_tokens=estimated,
        most_prompt_tokens=min(text_bytes, int(ESTIMATE_SLACK * estimated) + 1),
        mode=wire.WISH[wishes.mode],
        max_reasoning_tokens=wishes.max_reasoning_tokens if wishes.HasField("max_reasoning_tokens") else None,
        max_answer_tokens=wishes.max_answer_tokens if wishes.HasField("max_answer_tokens") else None,
        deadline_s=min(deadlines, default=None),
    )


def _refused(tenant: str, refusal: Refusal) -> RpcError:
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type="PROMISE", subject=tenant, description=refusal.why
            )
        ]
    )
    numbers = {"target_share": f"{refusal.share:g}", "predicted_latency": f"{refusal.predicted_s:.6f}s"}
    if refusal.deadline_s is not None:
        numbers["deadline"] = f"{refusal.deadline_s:.6f}s"
    return RpcError(
        grpc.StatusCode.FAILED_PRECONDITION, refusal.why, failure, reason("PROMISE_CANNOT_BE_KEPT", **numbers)
    )
