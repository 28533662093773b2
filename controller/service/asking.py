"""From a request to what the desk is asked, and from its refusals to what the caller is told."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import grpc
from google.rpc import error_details_pb2

from controller import wire
from controller.planning.decision import Ask, Prefix, Refusal, RefusedFor
from controller.planning.lengths import LengthModel
from controller.planning.needs import NOTHING, Ability, Needs
from curfew.rpc.errors import RpcError, reason, retry_after
from curfew.v1 import generation_pb2, reasoning_pb2

FORMAT_BYTES = 24
"""Added to the text for each turn's chat format, and once more for the answer's."""
TOOLS_BYTES, TOOL_BYTES = 800, 64
"""What the chat format says of tools beside what a request does, and of each tool or call."""
ESTIMATE_SLACK = 1.25
"""By how much more than estimated a prompt is taken to be at most, unless its bytes are fewer: no token of a
byte-level vocabulary is less than a byte."""

TIMEOUT_ROUNDING = 1.01
"""gRPC sends a timeout with two to three digits, rounded up: a caller may give up this much sooner."""


LEAST_PREFIX_BYTES = 256
"""Of a system turn for workers to keep anything of it."""

EFFORT_SHARE = {
    reasoning_pb2.EFFORT_NONE: 0.0,
    reasoning_pb2.EFFORT_MINIMAL: 1 / 16,
    reasoning_pb2.EFFORT_LOW: 1 / 4,
    reasoning_pb2.EFFORT_MEDIUM: 1 / 2,
}
"""What an effort leaves of the largest budget, where that is less than all."""


def ask_of(
    request: reasoning_pb2.GenerateRequest,
    most_reasoning_tokens: int,
    lengths: LengthModel,
    bytes_per_token: float,
    time_remaining_s: float | None,
) -> Ask:
    """A request in numbers. most_reasoning_tokens: that the policy grants, of which an effort is a share.
    time_remaining_s: of the call's own deadline.
    """
    text_bytes = prompt_bytes(request)
    estimated = lengths.prompt_tokens(text_bytes, bytes_per_token)
    wishes = request.wishes
    deadlines = [wire.seconds(wishes.deadline)] if wishes.HasField("deadline") else []
    if time_remaining_s is not None:
        deadlines.append(time_remaining_s / TIMEOUT_ROUNDING)
    return Ask(
        needs=needs_of(request),
        prefix=_prefix_of(request),
        prompt_tokens=estimated,
        most_prompt_tokens=min(text_bytes, int(ESTIMATE_SLACK * estimated) + 1),
        mode=wire.WISH[wishes.mode],
        max_reasoning_tokens=_most_reasoning(wishes, most_reasoning_tokens),
        max_answer_tokens=wishes.max_answer_tokens if wishes.HasField("max_answer_tokens") else None,
        max_output_tokens=wishes.max_output_tokens if wishes.HasField("max_output_tokens") else None,
        deadline_s=min(deadlines, default=None),
    )


def prompt_bytes(request: reasoning_pb2.GenerateRequest) -> int:
    """Bytes that the prompt's text has about: turns, and what the model is shown of tools."""
    total = FORMAT_BYTES
    for turn in request.messages:
        total += len(turn.content.encode()) + FORMAT_BYTES
        total += sum(len(call.arguments_json.encode()) + TOOL_BYTES for call in turn.tool_calls)
    if request.tools and request.tool_choice.kind != generation_pb2.ToolChoice.KIND_NONE:
        total += TOOLS_BYTES
        for tool in request.tools:
            schema = tool.parameters_json_schema
            # It is shown with blanks behind commas and colons.
            total += len(schema.encode()) + schema.count(",") + schema.count(":")
            total += len(tool.name) + len(tool.description.encode()) + TOOL_BYTES
    return total


def _prefix_of(request: reasoning_pb2.GenerateRequest) -> Prefix | None:
    """What requests with the same instructions and tools have in common at their beginning."""
    first = request.messages[0]
    if first.role != generation_pb2.ROLE_SYSTEM:
        return None
    text = first.content.encode()
    if len(text) < LEAST_PREFIX_BYTES:
        return None
    digest = hashlib.blake2b(text, digest_size=8)
    for tool in request.tools:
        digest.update(tool.SerializeToString(deterministic=True))
    return Prefix(int.from_bytes(digest.digest(), "big"))


def _most_reasoning(wishes: reasoning_pb2.Wishes, most: int) -> int | None:
    limits = [wishes.max_reasoning_tokens] if wishes.HasField("max_reasoning_tokens") else []
    share = EFFORT_SHARE.get(wishes.effort)
    if share is not None:
        limits.append(math.ceil(share * most))
    return min(limits, default=None)


def needs_of(request: reasoning_pb2.GenerateRequest) -> Needs:
    """What a worker must be for a request."""
    needs = set[Ability]()
    if request.tools or any(turn.tool_calls for turn in request.messages):
        needs.add(Ability.TOOLS)
    if request.HasField("answer_format"):
        needs.add(Ability.ANSWER_FORMAT)
    return Needs(frozenset(needs), request.model or None) if needs or request.model else NOTHING


def unknown_model(model: str, known: Sequence[str]) -> RpcError:
    """No worker runs a model of this name."""
    names = ", ".join(map(repr, known)) or "none"
    return RpcError(
        grpc.StatusCode.NOT_FOUND,
        f"the model {model!r} does not exist; known are: {names}",
        reason("MODEL_NOT_FOUND"),
    )


def no_worker(lacking: frozenset[Ability], retry_s: float) -> RpcError:
    """There is nobody to send a request to: UNAVAILABLE, or FAILED_PRECONDITION where none of the workers can
    do what it asks for.
    """
    if lacking:
        fields = " and ".join(sorted(ability.value for ability in lacking))
        why = f"no worker of this pool can take a request with {fields}"
        violations = [
            error_details_pb2.PreconditionFailure.Violation(
                type="CAPABILITY", subject=ability.value, description=why
            )
            for ability in lacking
        ]
        failure = error_details_pb2.PreconditionFailure(violations=violations)
        return RpcError(grpc.StatusCode.FAILED_PRECONDITION, why, failure, reason("NO_WORKER_CAN"))
    return RpcError(
        grpc.StatusCode.UNAVAILABLE, "no worker is available", retry_after(retry_s), reason("NO_WORKER")
    )


def refused(tenant: str, refusal: Refusal) -> RpcError:
    """RESOURCE_EXHAUSTED when it may go better later, FAILED_PRECONDITION when it never does."""
    numbers = {"target_share": f"{refusal.share:g}", "predicted_latency": f"{refusal.predicted_s:.6f}s"}
    if refusal.deadline_s is not None:
        numbers["deadline"] = f"{refusal.deadline_s:.6f}s"
    if refusal.retry_s is not None:
        return RpcError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            refusal.why,
            retry_after(refusal.retry_s),
            reason(_REASON[refusal.reason], **numbers),
        )
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type="PROMISE", subject=tenant, description=refusal.why
            )
        ]
    )
    return RpcError(
        grpc.StatusCode.FAILED_PRECONDITION, refusal.why, failure, reason("PROMISE_CANNOT_BE_KEPT", **numbers)
    )


_REASON = {
    RefusedFor.PROMISE: "PROMISE_CANNOT_BE_KEPT_NOW",
    RefusedFor.PRICE: "OTHERS_NEED_IT_MORE",
    RefusedFor.CROWD: "TOO_MANY_WAIT",
}
