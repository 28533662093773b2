"""What is asked of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from controller.http.conversation import Conversation
from controller.http.fields import (
    ANY_OBJECT,
    COMMON_NAMES,
    Asked,
    ChoiceWord,
    Content,
    Count,
    Effort,
    Form,
    FreeFormat,
    Function,
    Named,
    ObjectFormat,
    Schema,
    Several,
    Unsupported,
    given,
)
from curfew.v1 import generation_pb2, reasoning_pb2

_ROLES = {
    "system": generation_pb2.ROLE_SYSTEM,
    "developer": generation_pb2.ROLE_SYSTEM,
    "user": generation_pb2.ROLE_USER,
    "assistant": generation_pb2.ROLE_ASSISTANT,
}


class MessageItem(Form):
    """What was said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(Form):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Form):
    """What a tool returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(Form):
    """What the model reasoned, which it is not shown again."""

    type: Literal["reasoning"]


def _kind(item: object) -> object:
    return (item.get("type") or "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="is no message, function_call, function_call_output or reasoning",
    ),
]


class ToolForm(Function):
    """A tool; only functions are."""

    type: Literal["function"]


class Choice(Named):
    """The tool that must be called."""

    type: Literal["function"]


class Reasoning(Form):
    """How much to reason, and whether it is shown as a summary."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class SchemaFormat(Form):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    name: str = ""
    json_schema: Schema = Field(alias="schema")


class TextOptions(Form):
    """What form the text has."""

    format: Annotated[FreeFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


def _stateless(value: object) -> object:
    if value:
        raise ValueError("is not supported, since no response is kept; send the whole conversation as input")
    return value


def _includable(values: list[str]) -> list[str]:
    if "message.output_text.logprobs" in values:
        raise ValueError("'message.output_text.logprobs' is not supported")
    return values


def _items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Stateless = Annotated[object, AfterValidator(_stateless)]


class ResponsesRequest(Asked):
    """A request. Nothing of it is stored, whatever `store` says."""

    input: Annotated[Several[Item], BeforeValidator(_items), Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    reasoning: Annotated[Reasoning, BeforeValidator(given)] = Reasoning()
    text: Annotated[TextOptions, BeforeValidator(given)] = TextOptions()
    tools: Several[ToolForm] | None = None
    tool_choice: ChoiceWord | Choice | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = None
    include: Annotated[Several[str], AfterValidator(_includable)] | None = None

    previous_response_id: Stateless = None
    conversation: Stateless = None
    background: Unsupported = None
    prompt: Unsupported = None

    def turns(self) -> Conversation:
        """Its turns in the contract's form. Their origins are positions in `input`."""
        turns = Conversation()
        if self.instructions:
            turns.add(0, generation_pb2.Message(role=generation_pb2.ROLE_SYSTEM, content=self.instructions))
        for index, item in enumerate(self.input):
            match item:
                case MessageItem():
                    turns.add(index, generation_pb2.Message(role=_ROLES[item.role], content=item.content))
                case CallItem():
                    turns.add_call(
                        index,
                        generation_pb2.ToolCall(
                            id=item.call_id, name=item.name, arguments_json=item.arguments
                        ),
                    )
                case ResultItem():
                    turns.add(
                        index,
                        generation_pb2.Message(
                            role=generation_pb2.ROLE_TOOL, content=item.output, tool_call_id=item.call_id
                        ),
                    )
        return turns

    def message(
        self, messages: Sequence[generation_pb2.Message], deadline_ms: float | None
    ) -> reasoning_pb2.GenerateRequest:
        """In the contract's form, with these turns. deadline_ms: from the request's header."""
        return self.generate(
            messages,
            self.wishes(self.reasoning.effort, self.max_output_tokens, deadline_ms),
            self.tools or (),
            self.tool_choice,
            self._schema(),
        )

    def _schema(self) -> Schema | None:
        match self.text.format:
            case ObjectFormat():
                return ANY_OBJECT
            case SchemaFormat(json_schema=schema):
                return schema
        return None


RENAMED = (
    *COMMON_NAMES,
    ("messages", "input"),
    (r"wishes\.max_output_tokens", "max_output_tokens"),
    (r"wishes\.effort", "reasoning.effort"),
    (r"answer_format\.json_schema", "text.format.schema"),
    (r"tools\[(\d+)\]\.parameters_json_schema", r"tools[\1].parameters"),
)
"""What fields of the contract are called here."""
