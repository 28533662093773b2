"""What requests of chat completions and of responses have in common."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from controller import wire
from controller.http.conversation import Conversation
from curfew.v1 import generation_pb2, reasoning_pb2

EFFORT = {
    None: reasoning_pb2.EFFORT_UNSPECIFIED,
    "none": reasoning_pb2.EFFORT_NONE,
    "minimal": reasoning_pb2.EFFORT_MINIMAL,
    "low": reasoning_pb2.EFFORT_LOW,
    "medium": reasoning_pb2.EFFORT_MEDIUM,
    "high": reasoning_pb2.EFFORT_HIGH,
    "xhigh": reasoning_pb2.EFFORT_HIGH,
    "max": reasoning_pb2.EFFORT_HIGH,
}
"""There is nothing above HIGH: it leaves all to the plan."""
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_COUNT = 2**32 - 1
CHOICE = {
    None: generation_pb2.ToolChoice.KIND_UNSPECIFIED,
    "auto": generation_pb2.ToolChoice.KIND_AUTO,
    "none": generation_pb2.ToolChoice.KIND_NONE,
    "required": generation_pb2.ToolChoice.KIND_REQUIRED,
}
COMMON_NAMES = (
    (r"wishes\.max_answer_tokens", "curfew.max_answer_tokens"),
    (r"wishes\.max_reasoning_tokens", "thinking.budget_tokens"),
    (r"wishes\.deadline", "curfew.deadline_ms"),
    ("labels", "curfew.labels"),
    (r"sampling\.", ""),
)
"""What fields of the contract are called in requests of either kind: beginnings of paths, as regular
expressions.
"""
TEXT_PARTS = ("text", "input_text", "output_text")

T = TypeVar("T")
Several = Annotated[list[T], Field(fail_fast=True)]
"""A list of which the first wrong entry is told: to tell of a million takes many seconds."""
ChoiceWord = Literal["auto", "none", "required"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
DeadlineMs = Annotated[float, Field(gt=0, le=MAX_DEADLINE_MS)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def _refuse(value: object) -> object:
    """A value that asks for nothing passes."""
    if value:
        raise ValueError("is not supported; leave it out")
    return value


def given(value: object) -> object:
    """Null, which some clients send for what they leave out, is as good as nothing."""
    return {} if value is None else value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _joined(value: object) -> object:
    """A content as one text: as it is, or from its text parts."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            continue
        text = part.get("text") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(text, str):
            raise ValueError(f"a part of type {kind!r} is not supported; send text")
        texts.append(text)
    return "".join(texts)


Unsupported = Annotated[object, AfterValidator(_refuse)]
"""An option that would change results and cannot be honoured. Null, 0, false and what is empty ask for
nothing.
"""
Content = Annotated[str, BeforeValidator(_joined)]
"""A text, or a list of text parts."""
Schema = dict[str, object]
"""A JSON Schema."""
ANY_OBJECT: Schema = {"type": "object"}


class Form(BaseModel):
    """A part of a request. What it does not know is passed over: clients send much."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class FreeFormat(Form):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Form):
    """Any JSON object."""

    type: Literal["json_object"]


class Function(Form):
    """A function's declaration. `strict` changes nothing: every call keeps the schema."""

    name: str
    description: str | None = None
    parameters: Schema | None = None


class Named(Form):
    """A function's name."""

    name: str


class Extension(Form):
    """`curfew`: what OpenAI's API has no field for. As this is Curfew's own, it must be right."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    deadline_ms: DeadlineMs | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    max_answer_tokens: Count | None = None


class Thinking(Form):
    """`thinking`: whether to reason, and with how many tokens at most."""

    type: Literal["enabled", "disabled"] = "enabled"
    budget_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None


class TemplateOptions(Form):
    """`chat_template_kwargs`, with which other servers of the model are told not to reason."""

    enable_thinking: bool | None = None


class Asked(Form):
    """What a request of either kind may say of how it is to be answered."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[Several[str], BeforeValidator(_listed)] | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    curfew: Annotated[Extension, BeforeValidator(given)] = Extension()

    frequency_penalty: Unsupported = None
    presence_penalty: Unsupported = None
    logit_bias: Unsupported = None
    top_logprobs: Unsupported = None
    moderation: Unsupported = None

    @abstractmethod
    def turns(self) -> Conversation:
        """Its turns in the contract's form."""

    @abstractmethod
    def message(
        self, messages: Sequence[generation_pb2.Message], deadline_ms: float | None
    ) -> reasoning_pb2.GenerateRequest:
        """In the contract's form, with these turns. deadline_ms: from the request's header."""

    def generate(
        self,
        messages: Sequence[generation_pb2.Message],
        wishes: reasoning_pb2.Wishes,
        functions: Sequence[Function],
        choice: ChoiceWord | Named | None,
        schema: Mapping[str, object] | None,
    ) -> reasoning_pb2.GenerateRequest:
        """In the contract's form. functions: that the model may call. choice: whether it does, or which one
        it must. schema: that the answer keeps; None for free text.
        """
        request = reasoning_pb2.GenerateRequest(
            messages=messages,
            model=self.model,
            sampling=self.sampling(),
            wishes=wishes,
            labels=self.curfew.labels,
            tools=[_tool(function) for function in functions],
        )
        if functions:
            request.tool_choice.kind = CHOICE["required" if isinstance(choice, Named) else choice]
            request.tool_choice.name = choice.name if isinstance(choice, Named) else ""
            request.tool_choice.single = self.parallel_tool_calls is False
        if schema is not None:
            request.answer_format.json_schema = json.dumps(schema, ensure_ascii=False)
        return request

    def sampling(self) -> generation_pb2.SamplingParams:
        """How tokens are chosen."""
        return generation_pb2.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else self.seed % 2**64,
            stop=self.stop,
        )

    def wishes(
        self, effort: Effort | None, max_output_tokens: int | None, deadline_ms: float | None
    ) -> reasoning_pb2.Wishes:
        """What is asked for inside what the tenant is granted. deadline_ms: beside that of the extension."""
        wishes = reasoning_pb2.Wishes(
            effort=EFFORT[effort],
            max_output_tokens=max_output_tokens,
            max_answer_tokens=self.curfew.max_answer_tokens,
        )
        template = self.chat_template_kwargs
        if template is not None and template.enable_thinking is False:
            wishes.mode = generation_pb2.MODE_NO_THINK
        if self.thinking is not None:
            if self.thinking.type == "disabled":
                wishes.mode = generation_pb2.MODE_NO_THINK
            elif self.thinking.budget_tokens is not None:
                wishes.max_reasoning_tokens = self.thinking.budget_tokens
        deadlines_ms = [each for each in (deadline_ms, self.curfew.deadline_ms) if each is not None]
        if deadlines_ms:
            wishes.deadline.CopyFrom(wire.duration(min(deadlines_ms) / 1000))
        return wishes


def _tool(function: Function) -> generation_pb2.Tool:
    parameters = function.parameters
    return generation_pb2.Tool(
        name=function.name,
        description=function.description or "",
        parameters_json_schema="" if parameters is None else json.dumps(parameters, ensure_ascii=False),
    )
