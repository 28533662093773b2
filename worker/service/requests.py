"""From the contracts' messages to the engine's values: what a caller asks for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from curfew.rpc.durations import seconds
from curfew.rpc.errors import invalid
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.engine.closing import Closing
from worker.engine.generation import Limits, Phase, ReasoningEnd, Strike, TokenRun
from worker.engine.probes import ProbeRule
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Chat, Role, Turn

MAX_ID, MAX_CLOSING_TEXT, MAX_STOPS, MAX_STOP = 128, 512, 16, 64  # the last two and the first in characters
MAX_LOGPROBS, MAX_SAMPLES, MAX_PRIORITY = 20, 16, 7

_ROLES = {pb.ROLE_SYSTEM: Role.SYSTEM, pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}
_PHASES = {
    pb.PHASE_REASONING: Phase.REASONING,
    pb.PHASE_FORCED: Phase.FORCED,
    pb.PHASE_ANSWER: Phase.ANSWER,
}
_MAX_DURATION_S = 315_576_000_000
_MODES = (pb.MODE_THINK, pb.MODE_NO_THINK)
_STRIKES = {
    pb.REASONING_END_NATURAL: ReasoningEnd.NATURAL,
    pb.REASONING_END_BUDGET: ReasoningEnd.BUDGET,
    pb.REASONING_END_DEADLINE: ReasoningEnd.DEADLINE,
    pb.REASONING_END_LOOP: ReasoningEnd.LOOP,
    pb.REASONING_END_STABLE: ReasoningEnd.STABLE,
}


class _Violations:
    """Collects what is wrong with a message."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def check(self, holds: bool, field: str, text: str) -> None:
        if not holds:
            self.found.append((field, text))

    def raise_if_any(self) -> None:
        if self.found:
            raise invalid(self.found)


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Reads requests for one model. closing: what ends reasoning where a request does not say."""

    chat: Chat
    closing: Closing

    def read(
        self, message: worker_pb2.WorkerServiceGenerateRequest, *, random_seed: int, now_s: float
    ) -> Request:
        """The request. random_seed: in force when it names none. now_s: its receipt, on the engine's clock.

        Encodes the prompt, which takes a while when it is long. Raises RpcError INVALID_ARGUMENT with every
        violation.
        """
        wrong = _Violations()
        _check_ranges(message, wrong)
        budget, think = message.budget, message.budget.reasoning_tokens > 0
        reason_until_s = _optional_seconds(message.budget, "reason_until", "budget.reason_until", wrong)
        deadline_s = _optional_seconds(message, "deadline", "deadline", wrong)
        sampling = _sampling(message.sampling, think, random_seed, wrong)
        turns = _turns(message.messages, wrong)
        resume = _resume(message, wrong)
        closing = self._closing(message.closing_text, wrong)
        strike = _strike(message, wrong)
        probe = _probe(message, wrong)
        reserve = _reserve(message, wrong)
        wrong.raise_if_any()
        reasoning = budget.reasoning_tokens + budget.grace_tokens + closing.longest if think else 0
        return Request(
            request_id=message.request_id,
            # Thinking with a budget of 0 is no thinking: the prompt then closes it.
            prompt=self.chat.prompt(turns, think=think),
            limits=Limits(
                reasoning_tokens=budget.reasoning_tokens,
                grace_tokens=budget.grace_tokens,
                max_output_tokens=reasoning + budget.answer_tokens,
                answer_tokens=budget.answer_tokens,
                reason_until_s=now_s + reason_until_s,
                reserve_tokens=reserve,
            ),
            closing=closing,
            sampling=sampling,
            received_s=now_s,
            priority=message.priority,
            deadline_s=now_s + deadline_s,
            stop=tuple(message.sampling.stop),
            samples=message.samples or 1,
            resume=resume,
            strike=strike,
            probe=probe,
        )

    def _closing(self, text: str, wrong: _Violations) -> Closing:
        if not text:
            return self.closing
        if len(text) > MAX_CLOSING_TEXT:
            wrong.check(False, "closing_text", f"at most {MAX_CLOSING_TEXT} characters, {len(text)} given")
            return self.closing
        try:
            return Closing(self.chat.encode, self.chat.token_bytes, text)
        except ValueError as error:
            wrong.check(False, "closing_text", str(error))
            return self.closing


def read_adjustment(message: worker_pb2.AdjustBudgetRequest, now_s: float) -> tuple[int | None, float | None]:
    """The new limit of reasoning tokens, and the new end of reasoning on the engine's clock; None leaves one.

    Raises RpcError INVALID_ARGUMENT.
    """
    wrong = _Violations()
    _check_id(message.request_id, wrong)
    until_s = _optional_seconds(message, "reason_until", "reason_until", wrong)
    wrong.raise_if_any()
    return (
        message.reasoning_tokens if message.HasField("reasoning_tokens") else None,
        now_s + until_s if message.HasField("reason_until") else None,
    )


def _check_id(request_id: str, wrong: _Violations) -> None:
    length = len(request_id)
    wrong.check(0 < length <= MAX_ID, "request_id", f"must have 1 to {MAX_ID} characters, has {length}")


def _check_ranges(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> None:
    budget, samples = message.budget, message.samples
    _check_id(message.request_id, wrong)
    wrong.check(message.mode in _MODES, "mode", f"must be MODE_THINK or MODE_NO_THINK, is {message.mode}")
    wrong.check(
        message.mode != pb.MODE_NO_THINK or not budget.reasoning_tokens,
        "budget.reasoning_tokens",
        f"must be 0 with MODE_NO_THINK, is {budget.reasoning_tokens}",
    )
    wrong.check(budget.answer_tokens > 0, "budget.answer_tokens", "must be at least 1, is 0")
    wrong.check(
        message.priority <= MAX_PRIORITY, "priority", f"must be 0 to {MAX_PRIORITY}, is {message.priority}"
    )
    wrong.check(samples <= MAX_SAMPLES, "samples", f"must be 0 to {MAX_SAMPLES}, is {samples}")
    wrong.check(samples <= 1 or not message.resume, "samples", f"must be 1 with resume, is {samples}")


def _sampling(message: pb.SamplingParams, think: bool, random_seed: int, wrong: _Violations) -> Sampling:
    def number(
        name: Literal["temperature", "top_p", "min_p", "repetition_penalty"],
        default: float,
        low: float,
        high: float,
        *,
        above: bool = False,
    ) -> float:
        value: float = getattr(message, name) if message.HasField(name) else default
        # A NaN is in no range.
        holds = (low < value if above else low <= value) and value <= high
        border = "above" if above else "at least"
        wrong.check(holds, f"sampling.{name}", f"must be {border} {low:g} and at most {high:g}, is {value:g}")
        return value if holds else default

    logprobs = message.top_logprobs
    wrong.check(
        logprobs <= MAX_LOGPROBS, "sampling.top_logprobs", f"must be 0 to {MAX_LOGPROBS}, is {logprobs}"
    )
    wrong.check(
        len(message.stop) <= MAX_STOPS,
        "sampling.stop",
        f"at most {MAX_STOPS} strings, {len(message.stop)} given",
    )
    for index, stop in enumerate(message.stop):
        wrong.check(
            0 < len(stop) <= MAX_STOP,
            f"sampling.stop[{index}]",
            f"must have 1 to {MAX_STOP} characters, has {len(stop)}",
        )
    return Sampling(
        temperature=number("temperature", 0.6 if think else 0.0, 0.0, 2.0),
        top_p=number("top_p", 0.95 if think else 1.0, 0.0, 1.0, above=True),
        top_k=message.top_k,
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, 1.0, 2.0),
        seed=message.seed if message.HasField("seed") else random_seed,
        logprobs=logprobs if message.HasField("top_logprobs") else None,
    )


def _turns(messages: Sequence[pb.Message], wrong: _Violations) -> list[Turn]:
    """The conversation, in an order that `Chat.prompt` takes."""
    wrong.check(bool(messages), "messages", "at least one is needed, none given")
    turns = []
    for number, message in enumerate(messages):
        field, role = f"messages[{number}].role", _ROLES.get(message.role)
        if role is None:
            wrong.check(False, field, f"must be a known role, is {message.role}")
            continue
        name = pb.Role.Name(message.role)
        wrong.check(role is not Role.SYSTEM or not number, field, f"{name} may only be the first")
        last = number == len(messages) - 1
        wrong.check(role is Role.USER or not last, field, f"must be ROLE_USER, as the last, is {name}")
        turns.append(Turn(role, message.content))
    return turns


def _resume(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> tuple[TokenRun, ...]:
    runs = []
    for number, run in enumerate(message.resume):
        phase = _PHASES.get(run.phase)
        if phase is None:
            wrong.check(False, f"resume[{number}].phase", f"must be a known phase, is {run.phase}")
        else:
            runs.append(TokenRun(phase, tuple(run.token_ids)))
    return tuple(runs)


def _strike(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> Strike | None:
    if not message.HasField("strike"):
        return None
    wrong.check(bool(message.resume), "strike", "is only for a request with resume")
    reason = _STRIKES.get(message.strike.reason)
    if reason is None:
        wrong.check(False, "strike.reason", f"must be one that strikes, is {message.strike.reason}")
        return None
    return Strike(reason, message.strike.reasoning_tokens)


def _probe(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> ProbeRule | None:
    if not message.HasField("probe"):
        return None
    rule, samples = message.probe, message.samples
    numbers = {
        "first_reasoning_tokens": (1, rule.first_reasoning_tokens),
        "every_reasoning_tokens": (1, rule.every_reasoning_tokens),
        "stable_answers": (2, rule.stable_answers),
        "answer_tokens": (1, rule.answer_tokens),
    }
    for name, (least, number) in numbers.items():
        wrong.check(number >= least, f"probe.{name}", f"must be at least {least}, is {number}")
    wrong.check(samples <= 1, "samples", f"must be 1 with probe, is {samples}")
    if wrong.found:
        return None
    return ProbeRule(
        first_tokens=rule.first_reasoning_tokens,
        every_tokens=rule.every_reasoning_tokens,
        stable_answers=rule.stable_answers,
        answer_tokens=rule.answer_tokens,
    )


def _reserve(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> int:
    """Reasoning tokens to reserve beyond the budget."""
    if not message.HasField("reserve_reasoning_tokens"):
        return 0
    field, reserve, budget = (
        "reserve_reasoning_tokens", message.reserve_reasoning_tokens, message.budget.reasoning_tokens,
    )  # fmt: skip
    wrong.check(
        reserve >= budget, field, f"must be at least the budget's reasoning_tokens, {budget}, is {reserve}"
    )
    wrong.check(budget > 0 or not reserve, field, f"must be 0 without reasoning, is {reserve}")
    return reserve - budget


def _optional_seconds(message: Message, name: str, path: str, wrong: _Violations) -> float:
    """The duration in a field; infinite when it is not set."""
    if not message.HasField(name):
        return math.inf
    value: Duration = getattr(message, name)
    # What google.protobuf.Duration allows, without the negative half.
    holds = 0 <= value.seconds <= _MAX_DURATION_S and 0 <= value.nanos < 10**9
    wrong.check(holds, path, f"must be 0 s or longer, is {value.seconds} s and {value.nanos} ns")
    return seconds(value)
