"""All that has come of one request so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from curfew.rpc.errors import RpcError, reason
from curfew.v1 import generation_pb2, reasoning_pb2


@dataclass(slots=True)
class Call:
    """A call of a tool, as far as it has come."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Output:
    """What a request brought. calls: by their index in the answer. completion: once it is over."""

    plan: reasoning_pb2.Plan
    calls: dict[int, Call] = field(default_factory=dict)
    completion: reasoning_pb2.Completion = field(default_factory=reasoning_pb2.Completion)
    _reasoning: list[str] = field(default_factory=list)
    _answer: list[str] = field(default_factory=list)

    @property
    def reasoning(self) -> str:
        """The text of the reasoning."""
        return "".join(self._reasoning)

    @property
    def answer(self) -> str:
        """The text of the answer, without calls."""
        return "".join(self._answer)

    def take(self, event: reasoning_pb2.GenerateResponse) -> None:
        """Adds an event."""
        if event.HasField("delta"):
            delta = event.delta
            if delta.phase == generation_pb2.PHASE_REASONING:
                self._reasoning.append(delta.text)
            elif delta.phase == generation_pb2.PHASE_ANSWER:
                self._answer.append(delta.text)
            for piece in delta.tool_calls:
                call = self.calls.setdefault(piece.index, Call(piece.id, piece.name))
                call.arguments += piece.arguments_json
        elif event.HasField("completion"):
            self.completion = event.completion

    def drop_void_calls(self) -> list[generation_pb2.MalformedToolCall]:
        """Forgets the calls that turned out to be none, and returns what was."""
        void = [each for each in self.completion.malformed_tool_calls if each.index in self.calls]
        for each in void:
            del self.calls[each.index]
        return void


def void_call(call: generation_pb2.MalformedToolCall) -> RpcError:
    """What ends a stream that has told of a call which must not be made: there is no word to take it back."""
    return RpcError(
        grpc.StatusCode.ABORTED,
        f"call {call.index} of this answer is none, do not make it: {call.why}",
        reason("MALFORMED_TOOL_CALL", index=call.index),
    )
