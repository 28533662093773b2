"""What every worker checks of a request, whatever runs its model: ranges, roles, times. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from curfew.rpc.durations import seconds
from curfew.rpc.errors import invalid
from curfew.rpc.tools import parse_object, tool_violations
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.model.chat import Role, Turn
from worker.model.tools import Tool, ToolCall

MAX_ID, MAX_CLOSING_TEXT, MAX_STOPS, MAX_STOP = 128, 512, 16, 64  # the last two and the first in characters
MAX_LOGPROBS, MAX_SAMPLES, MAX_PRIORITY = 20, 16, 7

_ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
_MODES = (pb.MODE_THINK, pb.MODE_NO_THINK)
_MAX_DURATION_S = 315_576_000_000


@dataclass(frozen=True, slots=True)
class SamplingNumbers:
    """How tokens are chosen, with the contract's defaults filled in. top_k: 0 takes all. logprobs: None
    reports nothing.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    logprobs: int | None


class Violations:
    """Collects what is wrong with a message."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def check(self, holds: bool, field: str, text: str) -> None:
        if not holds:
            self.found.append((field, text))

    def raise_if_any(self) -> None:
        if self.found:
            raise invalid(self.found)


def read_adjustment(message: worker_pb2.AdjustBudgetRequest, now_s: float) -> tuple[int | None, float | None]:
    """The new limit of reasoning tokens, and the new end of reasoning on the engine's clock; None leaves one.

    Raises RpcError INVALID_ARGUMENT.
    """
    wrong = Violations()
    check_id(message.request_id, wrong)
    until_s = optional_seconds(message, "reason_until", "reason_until", wrong)
    wrong.raise_if_any()
    return (
        message.reasoning_tokens if message.HasField("reasoning_tokens") else None,
        now_s + until_s if message.HasField("reason_until") else None,
    )


def check_id(request_id: str, wrong: Violations) -> None:
    """A request's id."""
    length = len(request_id)
    wrong.check(0 < length <= MAX_ID, "request_id", f"must have 1 to {MAX_ID} characters, has {length}")


def check_ranges(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> None:
    """What needs no knowledge of a model."""
    budget, samples = message.budget, message.samples
    check_id(message.request_id, wrong)
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


def sampling_numbers(
    message: pb.SamplingParams, think: bool, random_seed: int, wrong: Violations
) -> SamplingNumbers:
    """The numbers, checked. think: which defaults are in force. random_seed: where the request names none."""

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
    return SamplingNumbers(
        temperature=number("temperature", 0.6 if think else 0.0, 0.0, 2.0),
        top_p=number("top_p", 0.95 if think else 1.0, 0.0, 1.0, above=True),
        top_k=message.top_k,
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, 1.0, 2.0),
        seed=message.seed if message.HasField("seed") else random_seed,
        logprobs=logprobs if message.HasField("top_logprobs") else None,
    )


def conversation(messages: Sequence[pb.Message], wrong: Violations) -> list[Turn]:
    """The conversation, in an order that `Chat.prompt` takes."""
    wrong.check(bool(messages), "messages", "at least one is needed, none given")
    turns = []
    for number, message in enumerate(_in_order_of_calls(messages)):
        field, role = f"messages[{number}].role", _ROLES.get(message.role)
        if role is None:
            wrong.check(False, field, f"must be a known role, is {message.role}")
            continue
        name = pb.Role.Name(message.role)
        wrong.check(role is not Role.SYSTEM or not number, field, f"{name} may only be the first")
        last, asks = number == len(messages) - 1, role in (Role.USER, Role.TOOL)
        wrong.check(asks or not last, field, f"must be ROLE_USER or ROLE_TOOL, as the last, is {name}")
        calls = tuple(ToolCall(call.name, call.arguments_json) for call in message.tool_calls)
        turns.append(Turn(role, message.content, calls))
    return turns


def _in_order_of_calls(messages: Sequence[pb.Message]) -> list[pb.Message]:
    """The turns with the results of tools sorted: the chat format has no ids that tell what they are of."""
    ordered: list[pb.Message] = []
    places: dict[str, int] = {}
    for are_results, group in groupby(messages, lambda message: message.role == pb.ROLE_TOOL):
        turns = list(group)
        if are_results:
            turns.sort(key=lambda turn: places.get(turn.tool_call_id, 0))
        else:
            places = {call.id: place for place, call in enumerate(turns[-1].tool_calls)}
        ordered += turns
    return ordered


def shown_tools(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> list[Tool]:
    """The tools that the model is shown, with everything checked that has to do with tools and formats."""
    found = list(tool_violations(message))
    wrong.found += found
    if found or message.tool_choice.kind == pb.ToolChoice.KIND_NONE:
        return []
    return [
        Tool(
            tool.name,
            tool.description,
            parse_object(tool.parameters_json_schema) if tool.parameters_json_schema else None,
        )
        for tool in message.tools
    ]


def optional_seconds(message: Message, name: str, path: str, wrong: Violations) -> float:
    """The duration in a field; infinite when it is not set."""
    if not message.HasField(name):
        return math.inf
    value: Duration = getattr(message, name)
    # What google.protobuf.Duration allows, without the negative half.
    holds = 0 <= value.seconds <= _MAX_DURATION_S and 0 <= value.nanos < 10**9
    wrong.check(holds, path, f"must be 0 s or longer, is {value.seconds} s and {value.nanos} ns")
    return seconds(value)
