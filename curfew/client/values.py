"""What a caller says and is told, as plain values. Words and meanings are those of the contracts (protos/).

Times are in seconds, counts in tokens of the model. What came from the controller has the message that it was
read from as `raw`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2


class Role(Enum):
    """Who speaks in a turn."""

    SYSTEM = pb.ROLE_SYSTEM
    USER = pb.ROLE_USER
    ASSISTANT = pb.ROLE_ASSISTANT
    TOOL = pb.ROLE_TOOL
    """What a tool returned."""


class Mode(Enum):
    """Whether the model reasons before it answers."""

    THINK = pb.MODE_THINK
    NO_THINK = pb.MODE_NO_THINK


class Effort(Enum):
    """How much of the reasoning that the policy allows is wanted at most."""

    NONE = reasoning_pb2.EFFORT_NONE
    """No reasoning."""
    MINIMAL = reasoning_pb2.EFFORT_MINIMAL
    """A sixteenth of the policy's largest budget."""
    LOW = reasoning_pb2.EFFORT_LOW
    """A quarter."""
    MEDIUM = reasoning_pb2.EFFORT_MEDIUM
    """A half."""
    HIGH = reasoning_pb2.EFFORT_HIGH
    """All of it: the plan decides."""


class Phase(Enum):
    """What generated tokens are."""

    UNKNOWN = pb.PHASE_UNSPECIFIED
    """Of a newer server."""
    REASONING = pb.PHASE_REASONING
    FORCED = pb.PHASE_FORCED
    """The closing text with which the engine ended the reasoning. It has no text to show."""
    ANSWER = pb.PHASE_ANSWER


class FinishReason(Enum):
    """Why a generation ended."""

    UNKNOWN = pb.FINISH_REASON_UNSPECIFIED
    """Of a newer server."""
    STOP = pb.FINISH_REASON_STOP
    """The model ended its answer, or a stop string did."""
    LENGTH = pb.FINISH_REASON_LENGTH
    """The answer used all tokens that it may have."""
    TOOL_CALLS = pb.FINISH_REASON_TOOL_CALLS
    """The model called tools, and waits for what they return."""


class ReasoningEnd(Enum):
    """Why reasoning ended."""

    UNKNOWN = pb.REASONING_END_UNSPECIFIED
    """Of a newer server."""
    NONE = pb.REASONING_END_NONE
    """There was none."""
    NATURAL = pb.REASONING_END_NATURAL
    """The model closed it."""
    BUDGET = pb.REASONING_END_BUDGET
    DEADLINE = pb.REASONING_END_DEADLINE
    LOOP = pb.REASONING_END_LOOP
    """It went in circles."""
    CANCELLED = pb.REASONING_END_CANCELLED
    STABLE = pb.REASONING_END_STABLE
    """The answer had not changed over the last probes."""

    @property
    def is_cut(self) -> bool:
        """Whether the budget or the time was used up before the model had thought enough."""
        return self in (ReasoningEnd.BUDGET, ReasoningEnd.DEADLINE)


class Objective(Enum):
    """A time that a tenant is promised, from receipt by the controller."""

    UNKNOWN = reasoning_pb2.OBJECTIVE_UNSPECIFIED
    """Of a newer server."""
    DEADLINE = reasoning_pb2.OBJECTIVE_DEADLINE
    FIRST_TOKEN = reasoning_pb2.OBJECTIVE_FIRST_TOKEN
    FIRST_ANSWER_TOKEN = reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN
    PER_TOKEN = reasoning_pb2.OBJECTIVE_PER_TOKEN
    """Mean time between tokens after the first."""


class ToolChoice(Enum):
    """Whether the model calls tools."""

    AUTO = pb.ToolChoice.KIND_AUTO
    """It decides."""
    NONE = pb.ToolChoice.KIND_NONE
    """It must not; the tools are not shown to it."""
    REQUIRED = pb.ToolChoice.KIND_REQUIRED
    """It must call one at least."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. You run it, and hand its result back in a turn of Role.TOOL."""

    name: str
    """Unique. Letters, digits, `_`, `-` and `.`; 1 to 64."""
    description: str = ""
    """What it does and when to call it, for the model to read. At most 4,096 characters."""
    parameters: Mapping[str, object] | None = None
    """JSON Schema of its arguments, at most 16 KiB of JSON. None: it takes none."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool."""

    id: str
    name: str
    arguments_json: str
    """The text of a JSON object that keeps the tool's parameters."""

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments by name."""
        arguments: dict[str, object] = json.loads(self.arguments_json)
        return arguments


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. At most one, the first, is the system's; the last is the user's or a
    tool's.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """That an assistant turn made."""
    tool_call_id: str = ""
    """Of a tool's turn: the call that it answers."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None is the service's default."""

    temperature: float | None = None
    """0 takes the likeliest token. Range 0 to 2. Default: 0.6 when thinking, 0 when not."""
    top_p: float | None = None
    """Range above 0, to 1. Default: 0.95 when thinking, 1 when not."""
    top_k: int | None = None
    """0, the default, samples from all tokens."""
    min_p: float | None = None
    """Range 0 to 1. Default 0."""
    repetition_penalty: float | None = None
    """Range 1 to 2. Default 1: off."""
    seed: int | None = None
    """Default: drawn at random."""
    stop: tuple[str, ...] = ()
    """The answer ends before any of these. At most 16 of at most 64 characters."""
    top_logprobs: int | None = None
    """Reports log-probabilities, with those of so many likeliest tokens, in `Delta.raw.logprobs`. Range 0 to
    20.
    """


class Options(TypedDict, total=False):
    """What may be said beside the question. A wish can make a request cheaper or faster than the tenant's
    policy would, never dearer or slower.
    """

    system: str
    """Instructions to the model, before the conversation."""
    deadline_s: float
    """A deadline from this call to the end of the answer, tighter than the tenant's. Above 0, to 86,400.
    Retries count into it.
    """
    timeout_s: float
    """When to give the call up, with DeadlineExceeded. Default: a while after `deadline_s`, since a late
    answer may still be better than none (see `timeout_after`); without that never.
    """
    mode: Mode
    """Default: the plan decides."""
    max_reasoning_tokens: int
    """Default: what the plan decides."""
    max_answer_tokens: int
    """At least 1. Default: the policy's answer reserve, which it cannot exceed."""
    max_output_tokens: int
    """Reasoning, closing text and answer together, of which the answer is served first. At least 1."""
    effort: Effort
    """Default: HIGH."""
    model: str
    """Name of the model that is to answer. Default: any that there is."""
    sampling: Sampling
    labels: Mapping[str, str]
    """What rules of the policy match on. At most 16 of at most 64 characters."""
    tools: Sequence[Tool]
    """Functions that the model may call. At most 64."""
    tool_choice: ToolChoice | str
    """Whether it calls them; the name of a tool: that one must be called. Default: AUTO."""
    single_tool_call: bool
    """At most one call. Default: as many as the model likes, 32 at most."""
    json_schema: Mapping[str, object]
    """JSON Schema that the answer keeps. At most 64 KiB of JSON."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a request may generate."""

    reasoning_tokens: int
    grace_tokens: int
    """Further tokens, in which the end of a sentence is awaited. Reasoning never exceeds the two together."""
    answer_tokens: int
    """Kept back for the answer."""
    reason_until_s: float | None
    """When reasoning must end, from receipt. None: when its tokens are used."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided for a request, and why. The first event of a stream."""

    request_id: str
    policy_version: str
    tenant: str
    rule: str
    """The rule that matched, as a path into the policy file."""
    mode: Mode
    budget: Budget
    deadline_s: float | None
    """What is owed, from receipt to the end of the answer. None: the tenant has no deadline."""
    target_share: float
    """The share of requests that must make the deadline, in (0, 1)."""
    predicted_latency_s: float
    """Quantile at `target_share` of the predicted time to the end."""
    promised_probability: float
    """That the deadline is kept, as predicted. In [0, 1]."""
    why: str
    worker: str
    raw: reasoning_pb2.Plan = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call of a tool."""

    index: int
    """Which call of the answer, from 0."""
    id: str
    """Comes with a call's first piece, as its name does."""
    name: str
    arguments_json: str
    """What follows of the arguments' JSON text."""


@dataclass(frozen=True, slots=True)
class MalformedToolCall:
    """Something that the model wrote as a call, but that is none."""

    index: int
    """Which call it would have been. Pieces that came under this index are void."""
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the output, of one phase."""

    phase: Phase
    text: str
    """Whole characters, without tags; may be empty."""
    token_ids: tuple[int, ...]
    tool_calls: tuple[ToolCallDelta, ...]
    """What the answer adds to calls of tools."""
    raw: pb.Delta = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """The budget was changed while the request ran."""

    budget: Budget
    """Now in force."""
    why: str
    raw: reasoning_pb2.BudgetAdjustment = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts. output_tokens = reasoning_tokens + forced_tokens + answer_tokens."""

    prompt_tokens: int
    cached_prompt_tokens: int
    """Of the prompt's, found computed already."""
    output_tokens: int
    reasoning_tokens: int
    forced_tokens: int
    """Closing text that was fed to end the reasoning."""
    answer_tokens: int
    probe_tokens: int = 0
    """Of answer probes, beside the output."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a generation's time went, on the worker, from its receipt there."""

    queue_s: float
    prefill_s: float
    first_token_s: float
    first_answer_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    """One objective, and what came of it. Seconds."""

    objective: Objective
    promised_s: float
    actual_s: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request used, and whether its promises were kept. The last event of a stream."""

    finish_reason: FinishReason
    reasoning_end: ReasoningEnd
    usage: Usage
    timings: Timings
    latency_s: float
    """From receipt by the controller to its end."""
    objectives: tuple[ObjectiveResult, ...]
    """Those of the tenant, and the caller's own deadline."""
    reopened: bool
    """The model tried to reason again inside the answer; what it wrote as tags was not passed on."""
    adjustments: int
    """How often the budget was adjusted while the request ran."""
    malformed_tool_calls: tuple[MalformedToolCall, ...]
    raw: reasoning_pb2.Completion = field(repr=False, compare=False)

    @property
    def kept(self) -> bool:
        """Whether every objective was kept."""
        return all(result.kept for result in self.objectives)


Event = Plan | Delta | Adjustment | Completion
"""What a stream consists of: a plan, then deltas with adjustments between them, then a completion."""


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came of one request."""

    answer: str
    reasoning: str
    plan: Plan
    completion: Completion
    adjustments: tuple[Adjustment, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    """Those that are complete and well-formed."""

    @property
    def turn(self) -> Message:
        """The answer as a turn, for the conversation to go on after it."""
        return Message(Role.ASSISTANT, self.answer, self.tool_calls)
