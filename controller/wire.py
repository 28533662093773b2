"""Between the values of this package and the messages of the contracts."""

from __future__ import annotations

from controller.planning.decision import Decision, Mode
from curfew.rpc.durations import duration, seconds
from curfew.v1 import generation_pb2

__all__ = ["MODE", "WISH", "budget", "duration", "seconds"]

MODE = {Mode.THINK: generation_pb2.MODE_THINK, Mode.NO_THINK: generation_pb2.MODE_NO_THINK}
"""The contract's mode for a decision's."""

WISH = {generation_pb2.MODE_UNSPECIFIED: None} | {wire: mode for mode, wire in MODE.items()}
"""A wish for a mode, from the contract's."""


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
