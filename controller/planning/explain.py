"""A decision in plain words, with its numbers."""

from __future__ import annotations

import math

from controller.planning.forecast import CLOSING_STEPS, Pace, Times
from controller.policy.units import format_duration as shown
from controller.policy.units import format_share


def explain_plan(
    times: Times, share: float, pace: Pace, reasoning_tokens: float, end_s: float, keeps: bool
) -> str:
    """The arithmetic of a plan, such as `800 ms at p95: wait 5 ms + prefill 12 ms + 230 tokens × 2.1 ms = 500
    ms fits`.

    reasoning_tokens: that the plan is expected to use at this pace, 0 without reasoning. end_s: what it comes
    to.
    """
    tokens = pace.answer_tokens
    if reasoning_tokens > 0:
        tokens += math.ceil(reasoning_tokens) + CLOSING_STEPS
    verdict = "fits" if keeps else "does not keep every promise: best effort"
    return (
        f"{_promise(times, share)}: wait {shown(pace.wait_s)} + prefill {shown(pace.prefill_s)} + "
        f"{tokens} tokens × {shown(pace.step_s)} = {shown(end_s)} {verdict}"
    )


def explain_refusal(times: Times, share: float, pace: Pace, floor_budget: int, floor: float) -> str:
    """Why nothing keeps the promise: the fastest plan, and what the quality floor would take beside it."""
    floor_text = (
        f"; quality {floor:g} takes {floor_budget} tokens of reasoning more" if floor_budget > 0 else ""
    )
    return (
        f"{_promise(times, share)} cannot be kept: wait {shown(pace.wait_s)} + "
        f"prefill {shown(pace.prefill_s)} + {pace.answer_tokens} tokens of answer × {shown(pace.step_s)} = "
        f"{shown(pace.no_think_s())}{floor_text}"
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
