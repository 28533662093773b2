"""Between the values of this package and the messages of the contracts."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from controller.planning.decision import Decision, Mode
from curfew.v1 import generation_pb2

MODE = {Mode.THINK: generation_pb2.MODE_THINK, Mode.NO_THINK: generation_pb2.MODE_NO_THINK}
"""The contract's mode for a decision's."""

WISH = {generation_pb2.MODE_UNSPECIFIED: None} | {wire: mode for mode, wire in MODE.items()}
"""A wish for a mode, from the contract's."""


def duration(seconds: float) -> Duration:
    """Seconds as a message, to the nanosecond."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def seconds(message: Duration) -> float:
    """A message as seconds."""
    return message.seconds + message.nanos * 1e-9


def budget(decision: Decision, elapsed_s: float) -> generation_pb2.Budget:
    """A decision's budget for a receiver that begins to count `elapsed_s` after the controller did."""
    message = generation_pb2.Budget(
        reasoning_tokens=decision.budget_tokens,
        grace_tokens=decision.grace_tokens,
        answer_tokens=decision.answer_tokens,
    )
    if decision.reason_until_s is not None:
        message.reason_until.CopyFrom(duration(max(0.0, decision.reason_until_s - elapsed_s)))
    return message
