"""What is asked of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

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
)
from curfew.v1 import generation_pb2, reasoning_pb2


class SystemTurn(Form):
    """Instructions; `developer` is the newer word."""

    role: Literal["system", "developer"]
    content: Content


class UserTurn(Form):
    """What the user says."""

    role: Literal["user"]
    content: Content


class Called(Form):
    """What is called, with the text of a JSON object."""

    name: str
    arguments: str


class Call(Form):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class AssistantTurn(Form):
    """What the model answered. Its reasoning, which some clients send back, is passed over."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Several[Call] | None = None
    function_call: Unsupported = None
    audio: Unsupported = None


class ToolTurn(Form):
    """What a tool returned."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")]


class ToolForm(Form):
    """A tool; only functions are."""

    type: Literal["function"]
    function: Function


class Choice(Form):
    """The tool that must be called."""

    type: Literal["function"]
    function: Named


class SchemaForm(Form):
    """A schema that the answer keeps."""

    name: str = ""
    json_schema: Schema = Field(alias="schema")


class SchemaFormat(Form):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaForm


class StreamOptions(Form):
    """What a stream holds beside the answer."""

    include_usage: bool = False


class ChatRequest(Asked):
    """A request."""

    messages: Annotated[Several[Turn], Field(min_length=1)]
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    reasoning_effort: Effort | None = None
    tools: Several[ToolForm] | None = None
    tool_choice: ChoiceWord | Choice | None = None
    response_format: (
        Annotated[FreeFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    n: Literal[1] | None = None
    modalities: Several[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    logprobs: Unsupported = None
    audio: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    web_search_options: Unsupported = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage

    def turns(self) -> Conversation:
        """Its turns in the contract's form."""
        turns = Conversation()
        for index, turn in enumerate(self.messages):
            turns.add(index, _message(turn))
        return turns

    def message(
        self, messages: Sequence[generation_pb2.Message], deadline_ms: float | None
    ) -> reasoning_pb2.GenerateRequest:
        """In the contract's form, with these turns. deadline_ms: from the request's header."""
        limits = [each for each in (self.max_completion_tokens, self.max_tokens) if each is not None]
        return self.generate(
            messages,
            self.wishes(self.reasoning_effort, min(limits, default=None), deadline_ms),
            [tool.function for tool in self.tools or ()],
            self.tool_choice.function if isinstance(self.tool_choice, Choice) else self.tool_choice,
            self._schema(),
        )

    def _schema(self) -> Schema | None:
        match self.response_format:
            case ObjectFormat():
                return ANY_OBJECT
            case SchemaFormat(json_schema=form):
                return form.json_schema
        return None


RENAMED = (
    *COMMON_NAMES,
    (r"wishes\.max_output_tokens", "max_completion_tokens"),
    (r"wishes\.effort", "reasoning_effort"),
    (r"answer_format\.json_schema", "response_format.json_schema.schema"),
    (r"tools\[(\d+)\]\.parameters_json_schema", r"tools[\1].function.parameters"),
    (r"tools\[(\d+)\]\.(name|description)", r"tools[\1].function.\2"),
    (r"tool_choice\.name", "tool_choice.function.name"),
    (r"(messages\[\d+\]\.tool_calls\[\d+\])\.arguments_json", r"\1.function.arguments"),
    (r"(messages\[\d+\]\.tool_calls\[\d+\])\.name", r"\1.function.name"),
)
"""What fields of the contract are called here."""


def _message(turn: SystemTurn | UserTurn | AssistantTurn | ToolTurn) -> generation_pb2.Message:
    match turn:
        case SystemTurn():
            return generation_pb2.Message(role=generation_pb2.ROLE_SYSTEM, content=turn.content)
        case UserTurn():
            return generation_pb2.Message(role=generation_pb2.ROLE_USER, content=turn.content)
        case ToolTurn():
            return generation_pb2.Message(
                role=generation_pb2.ROLE_TOOL, content=turn.content, tool_call_id=turn.tool_call_id
            )
        case AssistantTurn():
            calls = [
                generation_pb2.ToolCall(
                    id=call.id, name=call.function.name, arguments_json=call.function.arguments
                )
                for call in turn.tool_calls or ()
            ]
            return generation_pb2.Message(
                role=generation_pb2.ROLE_ASSISTANT, content=turn.content or "", tool_calls=calls
            )
