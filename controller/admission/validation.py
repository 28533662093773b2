"""Checks a request against the contract's rules before anything is spent on it."""

from __future__ import annotations

from collections.abc import Iterator

from controller import wire
from curfew.rpc.tools import tool_violations
from curfew.v1 import generation_pb2, reasoning_pb2

MAX_MESSAGES = 1024
MAX_ID_LENGTH = 128
MAX_LABELS = 16
MAX_LABEL_LENGTH = 64
MAX_STOPS = 16
MAX_STOP_LENGTH = 64
MAX_LOGPROBS = 20
MAX_MODEL_LENGTH = 256
MAX_DEADLINE_S = 24 * 3600.0

_ROLES = (
    generation_pb2.ROLE_SYSTEM,
    generation_pb2.ROLE_USER,
    generation_pb2.ROLE_ASSISTANT,
    generation_pb2.ROLE_TOOL,
)
_LAST = (generation_pb2.ROLE_USER, generation_pb2.ROLE_TOOL)
_ROLE_NAMES: dict[int, str] = {number: name for name, number in generation_pb2.Role.items()}

Violation = tuple[str, str]
"""Path of a field, such as `messages[0].role`, and what is wrong with which value."""


def violations(request: reasoning_pb2.GenerateRequest) -> list[Violation]:
    """Everything that is wrong with a request; empty when nothing is."""
    return [
        *_messages(request),
        *_sampling(request.sampling),
        *_wishes(request.wishes),
        *_labels(request),
        *_model(request.model),
        *tool_violations(request),
    ]


def outcome_violations(request: reasoning_pb2.ReportOutcomeRequest) -> list[Violation]:
    """Everything that is wrong with a report; empty when nothing is."""
    wrong: list[Violation] = []
    length = len(request.request_id)
    if not length:
        wrong.append(("request_id", "is empty; send the one of the request's plan"))
    elif length > MAX_ID_LENGTH:
        wrong.append(("request_id", f"{length} characters; allowed are at most {MAX_ID_LENGTH}"))
    if not 0 <= request.score <= 1:
        wrong.append(("score", f"{request.score:g} is out of range; allowed is 0 (wrong) to 1 (right)"))
    return wrong


def _messages(request: reasoning_pb2.GenerateRequest) -> Iterator[Violation]:
    messages = request.messages
    if not messages:
        yield "messages", "is empty; send at least one"
        return
    if len(messages) > MAX_MESSAGES:
        # The rest is not looked at, here and below: that takes time too.
        yield "messages", f"{len(messages)} messages; allowed are at most {MAX_MESSAGES}"
        return
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role not in _ROLES:
            yield f"{field}.role", f"{_ROLE_NAMES.get(message.role, message.role)} is not a role"
        if message.role == generation_pb2.ROLE_SYSTEM and index > 0:
            yield f"{field}.role", f"ROLE_SYSTEM stands at {index}; it may only be the first"
        if message.role == generation_pb2.ROLE_USER and not message.content.strip():
            yield f"{field}.content", f"{message.content[:20]!r} asks nothing"
    last = messages[-1].role
    if last not in _LAST and last in _ROLES:
        field = f"messages[{len(messages) - 1}].role"
        yield field, f"the last turn is {_ROLE_NAMES[last]}'s; it must be ROLE_USER's or ROLE_TOOL's"


def _sampling(sampling: generation_pb2.SamplingParams) -> Iterator[Violation]:
    # Written so that a NaN is out of every range.
    if sampling.HasField("temperature") and not 0 <= sampling.temperature <= 2:
        yield _outside("temperature", sampling.temperature, "0 to 2")
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        yield _outside("top_p", sampling.top_p, "above 0, to 1")
    if sampling.HasField("min_p") and not 0 <= sampling.min_p <= 1:
        yield _outside("min_p", sampling.min_p, "0 to 1")
    if sampling.HasField("repetition_penalty") and not 1 <= sampling.repetition_penalty <= 2:
        yield _outside("repetition_penalty", sampling.repetition_penalty, "1 to 2")
    if sampling.top_logprobs > MAX_LOGPROBS:
        yield _outside("top_logprobs", sampling.top_logprobs, f"0 to {MAX_LOGPROBS}")
    if len(sampling.stop) > MAX_STOPS:
        yield "sampling.stop", f"{len(sampling.stop)} strings; allowed are at most {MAX_STOPS}"
        return
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            yield f"sampling.stop[{index}]", f"{len(stop)} characters; allowed are 1 to {MAX_STOP_LENGTH}"


def _outside(name: str, value: float, allowed: str) -> Violation:
    return f"sampling.{name}", f"{value:g} is out of range; allowed is {allowed}"


def _wishes(wishes: reasoning_pb2.Wishes) -> Iterator[Violation]:
    if wishes.mode not in wire.WISH:
        yield "wishes.mode", f"{wishes.mode} is not a mode"
    if wishes.HasField("max_answer_tokens") and wishes.max_answer_tokens < 1:
        yield "wishes.max_answer_tokens", "0 leaves no answer; allowed is 1 and more"
    if wishes.HasField("max_output_tokens") and wishes.max_output_tokens < 1:
        yield "wishes.max_output_tokens", "0 leaves no answer; allowed is 1 and more"
    if wishes.effort not in reasoning_pb2.Effort.values():
        yield "wishes.effort", f"{wishes.effort} is not an effort"
    if wishes.HasField("deadline"):
        deadline_s = wire.seconds(wishes.deadline)
        if not 0 < deadline_s <= MAX_DEADLINE_S:
            yield "wishes.deadline", f"{deadline_s:g}s is out of range; allowed is above 0s, to 24h"


def _labels(request: reasoning_pb2.GenerateRequest) -> Iterator[Violation]:
    if len(request.labels) > MAX_LABELS:
        yield "labels", f"{len(request.labels)} labels; allowed are at most {MAX_LABELS}"
        return
    for key, value in request.labels.items():
        if not key or max(len(key), len(value)) > MAX_LABEL_LENGTH:
            shown = f"{key[:20]!r} has {len(key)} characters and its value {len(value)}"
            yield "labels", f"{shown}; allowed are 1 to {MAX_LABEL_LENGTH} and at most {MAX_LABEL_LENGTH}"


def _model(model: str) -> Iterator[Violation]:
    if len(model) > MAX_MODEL_LENGTH:
        yield "model", f"{len(model)} characters; allowed are at most {MAX_MODEL_LENGTH}"
