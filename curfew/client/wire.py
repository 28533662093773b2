"""Between the client's values and the messages of the contracts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import TypeVar

from curfew.client.values import (
    Adjustment,
    Budget,
    Completion,
    Delta,
    Event,
    FinishReason,
    MalformedToolCall,
    Message,
    Mode,
    Objective,
    ObjectiveResult,
    Options,
    Phase,
    Plan,
    ReasoningEnd,
    Role,
    Sampling,
    Timings,
    Tool,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from curfew.rpc.durations import seconds
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

Kind = TypeVar("Kind", bound=Enum)

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "top_logprobs")


def request(question: str | Sequence[Message], options: Options) -> reasoning_pb2.GenerateRequest:
    """The message for a question with its options; `deadline_s` is left to each attempt."""
    turns = [Message(Role.USER, question)] if isinstance(question, str) else list(question)
    if system := options.get("system"):
        turns.insert(0, Message(Role.SYSTEM, system))
    message = reasoning_pb2.GenerateRequest(
        messages=[_message(turn) for turn in turns],
        sampling=_sampling(options.get("sampling", Sampling())),
        labels=options.get("labels"),
        tools=[_tool(tool) for tool in options.get("tools", ())],
    )
    if "tool_choice" in options or "single_tool_call" in options:
        choice = options.get("tool_choice", ToolChoice.AUTO)
        kind, name = (ToolChoice.REQUIRED, choice) if isinstance(choice, str) else (choice, "")
        single = options.get("single_tool_call", False)
        message.tool_choice.CopyFrom(pb.ToolChoice(kind=kind.value, name=name, single=single))
    if "json_schema" in options:
        message.answer_format.json_schema = json.dumps(options["json_schema"])
    if "mode" in options:
        message.wishes.mode = options["mode"].value
    if "max_reasoning_tokens" in options:
        message.wishes.max_reasoning_tokens = options["max_reasoning_tokens"]
    if "max_answer_tokens" in options:
        message.wishes.max_answer_tokens = options["max_answer_tokens"]
    if "max_output_tokens" in options:
        message.wishes.max_output_tokens = options["max_output_tokens"]
    if "model" in options:
        message.model = options["model"]
    if "effort" in options:
        message.wishes.effort = options["effort"].value
    return message


def event(response: reasoning_pb2.GenerateResponse) -> Event | None:
    """The event that a message holds; None for one of a newer server."""
    match response.WhichOneof("event"):
        case "plan":
            return plan(response.plan)
        case "delta":
            return _delta(response.delta)
        case "adjustment":
            adjustment = response.adjustment
            return Adjustment(_budget(adjustment.budget), adjustment.why, adjustment)
        case "completion":
            return _completion(response.completion)
    return None


def plan(message: reasoning_pb2.Plan) -> Plan:
    """A plan."""
    return Plan(
        request_id=message.request_id,
        policy_version=message.policy_version,
        tenant=message.tenant,
        rule=message.rule,
        mode=Mode.THINK if message.mode == pb.MODE_THINK else Mode.NO_THINK,
        budget=_budget(message.budget),
        deadline_s=seconds(message.deadline) if message.HasField("deadline") else None,
        target_share=message.target_share,
        predicted_latency_s=seconds(message.predicted_latency),
        promised_probability=message.promised_probability,
        why=message.why,
        worker=message.worker,
        raw=message,
    )


def _message(turn: Message) -> pb.Message:
    return pb.Message(
        role=turn.role.value,
        content=turn.content,
        tool_calls=[
            pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            for call in turn.tool_calls
        ],
        tool_call_id=turn.tool_call_id,
    )


def _tool(tool: Tool) -> pb.Tool:
    schema = "" if tool.parameters is None else json.dumps(tool.parameters)
    return pb.Tool(name=tool.name, description=tool.description, parameters_json_schema=schema)


def _delta(message: pb.Delta) -> Delta:
    calls = tuple(
        ToolCallDelta(call.index, call.id, call.name, call.arguments_json) for call in message.tool_calls
    )
    return Delta(_known(Phase, message.phase), message.text, tuple(message.token_ids), calls, message)


def _completion(message: reasoning_pb2.Completion) -> Completion:
    usage, timings = message.usage, message.timings
    return Completion(
        finish_reason=_known(FinishReason, message.finish_reason),
        reasoning_end=_known(ReasoningEnd, message.reasoning_end),
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            forced_tokens=usage.forced_tokens,
            answer_tokens=usage.answer_tokens,
            probe_tokens=usage.probe_tokens,
        ),
        timings=Timings(
            queue_s=seconds(timings.queue),
            prefill_s=seconds(timings.prefill),
            first_token_s=seconds(timings.first_token),
            first_answer_token_s=seconds(timings.first_answer_token),
            total_s=seconds(timings.total),
        ),
        latency_s=seconds(message.latency),
        objectives=tuple(
            ObjectiveResult(
                objective=_known(Objective, result.objective),
                promised_s=seconds(result.promised),
                actual_s=seconds(result.actual),
                kept=result.kept,
            )
            for result in message.objectives
        ),
        reopened=message.reopened,
        adjustments=message.adjustments,
        malformed_tool_calls=tuple(
            MalformedToolCall(call.index, call.text, call.why) for call in message.malformed_tool_calls
        ),
        raw=message,
    )


def _sampling(sampling: Sampling) -> pb.SamplingParams:
    message = pb.SamplingParams(stop=sampling.stop)
    for name in _OF_SAMPLING:
        if (value := getattr(sampling, name)) is not None:
            setattr(message, name, value)
    return message


def _budget(message: pb.Budget) -> Budget:
    return Budget(
        reasoning_tokens=message.reasoning_tokens,
        grace_tokens=message.grace_tokens,
        answer_tokens=message.answer_tokens,
        reason_until_s=seconds(message.reason_until) if message.HasField("reason_until") else None,
    )


def _known(kind: type[Kind], number: int) -> Kind:
    """The member of this number; what a newer server says beyond them is UNKNOWN."""
    try:
        return kind(number)
    except ValueError:
        return kind(0)
