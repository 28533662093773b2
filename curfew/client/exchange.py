"""One streamed request, from its first attempt to its last event, without a transport."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from curfew.client import wire
from curfew.client.attempts import Attempt, Attempts
from curfew.client.errors import LOST, Code, CurfewError
from curfew.client.values import (
    Adjustment,
    Completion,
    Delta,
    Event,
    Phase,
    Plan,
    Reply,
    ToolCall,
    ToolCallDelta,
)
from curfew.rpc.durations import duration
from curfew.v1 import reasoning_pb2


class Exchange:
    """Is told what the transport saw, and tells it what to do. Keeps what has come."""

    def __init__(
        self, request: reasoning_pb2.GenerateRequest, attempts: Attempts, *, unseen: bool = False
    ) -> None:
        """unseen: nobody sees the events, so that a request which is lost on its way may begin anew."""
        self._request = request
        self._attempts = attempts
        self._unseen = unseen
        self._forget()

    def _forget(self) -> None:
        """Nothing has come."""
        self.plan: Plan | None = None
        self.completion: Completion | None = None
        self._waiting: deque[Event] = deque()
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._adjustments: list[Adjustment] = []
        self._begun = False

    def begin(self) -> tuple[Attempt, reasoning_pb2.GenerateRequest]:
        """The next call, and what to send."""
        attempt = self._attempts.begin()
        return attempt, within(self._request, attempt)

    def take(self, response: reasoning_pb2.GenerateResponse) -> None:
        """A message came."""
        if not self._begun:
            self._begun = True
            self._attempts.succeeded()
        event = wire.event(response)
        match event:
            case None:
                return
            case Plan():
                self.plan = event
            case Delta(phase=Phase.REASONING):
                self._reasoning.append(event.text)
            case Delta(phase=Phase.ANSWER):
                self._answer.append(event.text)
                self._calls += event.tool_calls
            case Adjustment():
                self._adjustments.append(event)
            case Completion():
                self.completion = event
        self._waiting.append(event)

    def next(self) -> Event | None:
        """The next event that has come and was not read."""
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, event: Event) -> None:
        """An event that was read is to be read again."""
        self._waiting.appendleft(event)

    def failed(self, error: CurfewError) -> float:
        """The call failed. Returns the seconds to wait before the next; raises the error if there is none."""
        if self._begun:
            if not (self._unseen and isinstance(error, LOST)):
                raise error
            self._forget()
        return self._attempts.after(error)

    def ended(self) -> None:
        """The call ended well. Raises CurfewError when it should not have."""
        if self.completion is None:
            raise CurfewError(Code.INTERNAL, "the stream ended without a completion")

    def reply(self) -> Reply:
        """All that came. Raises CurfewError before the end."""
        if self.plan is None or self.completion is None:
            raise CurfewError(Code.INTERNAL, "the stream has not come to its end")
        return Reply(
            answer="".join(self._answer),
            reasoning="".join(self._reasoning),
            plan=self.plan,
            completion=self.completion,
            adjustments=tuple(self._adjustments),
            tool_calls=_whole(self._calls, {call.index for call in self.completion.malformed_tool_calls}),
        )


def _whole(pieces: Sequence[ToolCallDelta], void: Collection[int]) -> tuple[ToolCall, ...]:
    """The calls that pieces make up, those left out that were reported as malformed."""
    calls: dict[int, ToolCall] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.index not in void:
            calls.setdefault(piece.index, ToolCall(piece.id, piece.name, ""))
            arguments.setdefault(piece.index, []).append(piece.arguments_json)
    return tuple(
        replace(call, arguments_json="".join(arguments[index])) for index, call in sorted(calls.items())
    )


def within(request: reasoning_pb2.GenerateRequest, attempt: Attempt) -> reasoning_pb2.GenerateRequest:
    """The request with what is left of its deadline."""
    if attempt.deadline_s is None:
        return request
    message = reasoning_pb2.GenerateRequest()
    message.CopyFrom(request)
    message.wishes.deadline.CopyFrom(duration(attempt.deadline_s))
    return message


def ends_reasoning(event: Event) -> bool:
    """Whether no reasoning follows after this event, itself included."""
    return isinstance(event, Completion) or (
        isinstance(event, Delta) and event.phase in (Phase.FORCED, Phase.ANSWER)
    )
