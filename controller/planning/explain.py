"""A decision's numbers in plain words."""

from __future__ import annotations

import math

from controller.planning.forecast import CLOSING_STEPS, Pace, Times
from controller.policy.units import format_duration as shown
from controller.policy.units import format_share


def arithmetic(times: Times, share: float, pace: Pace, reasoning_tokens: float, end_s: float) -> str:
    """The sum that a plan comes to: `800 ms at p95: wait 5 ms + prefill 12 ms + 230 tokens × 2 ms = 477 ms`.

    reasoning_tokens: that it is expected to use at this pace, 0 without reasoning. end_s: the sum.
    """
    tokens = pace.answer_tokens
    if reasoning_tokens > 0:
        tokens += math.ceil(reasoning_tokens) + CLOSING_STEPS
    return (
        f"{_promise(times, share)}: wait {shown(pace.wait_s)} + prefill {shown(pace.prefill_s)} + "
        f"{tokens} tokens × {shown(pace.step_s)} = {shown(end_s)}"
    )


def _promise(times: Times, share: float) -> str:
    """The promises in time, such as `800 ms (first token 200 ms) at p95`."""
    others = [
        f"{name} {shown(seconds)}"
        for name, seconds in (
            ("first token", times.first_token_s),
            ("first answer token", times.first_answer_token_s),
            ("per token", times.per_token_s),
        )
        if not math.isinf(seconds)
    ]
    deadline = "no deadline" if math.isinf(times.deadline_s) else shown(times.deadline_s)
    in_brackets = f" ({', '.join(others)})" if others else ""
    return f"{deadline}{in_brackets} at {format_share(share)}"
