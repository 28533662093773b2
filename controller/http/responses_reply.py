"""What `/v1/responses` answers."""

from __future__ import annotations

from collections.abc import Iterator

from controller.http import account
from controller.http.account import Json
from controller.http.items import Item, Kind
from controller.http.output import void_call
from controller.http.responses_request import Choice, ResponsesRequest
from curfew.v1 import generation_pb2, reasoning_pb2


class ResponsesReply:
    """One request's answer, whole or as the events of a stream.

    The reasoning is an item before the message, word for word: as its content, or as its summary where one is
    asked for, since some clients show nothing else.
    """

    def __init__(self, request: ResponsesRequest, plan: reasoning_pb2.Plan, created_s: int) -> None:
        """created_s: Unix time."""
        self._request = request
        self._plan = plan
        self._created_s = created_s
        self._reasoning = Kind.REASONING if request.reasoning.summary is None else Kind.SUMMARY
        self._completion: reasoning_pb2.Completion | None = None
        self._item: Item | None = None
        self._done: list[Item] = []
        self._events = 0

    def begin(self) -> Iterator[Json]:
        """The first events: the response as it is before anything has come."""
        for kind in ("response.created", "response.in_progress"):
            yield self._numbered({"type": kind, "response": self._response("in_progress")})

    def take(self, event: reasoning_pb2.GenerateResponse) -> Iterator[Json]:
        """The events that an event of the contract makes. Raises RpcError when a call that was told of turns
        out to be none.
        """
        events: Iterator[Json] = iter(())
        if event.HasField("delta"):
            events = self._take_delta(event.delta)
        elif event.HasField("completion"):
            events = self._take_completion(event.completion)
        for each in events:
            yield self._numbered(each)

    def failed(self, error: Json) -> Iterator[Json]:
        """The last event of a stream that ends with an error of the API's form."""
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": error["message"], "type": error["type"]}
        yield self._numbered({"type": "response.failed", "response": response})

    def whole(self) -> Json:
        """All of it, once every event was taken."""
        return self._response(self._status())

    def _take_delta(self, delta: generation_pb2.Delta) -> Iterator[Json]:
        if delta.text and delta.phase == generation_pb2.PHASE_REASONING:
            yield from self._add(self._reasoning, delta.text)
        elif delta.text and delta.phase == generation_pb2.PHASE_ANSWER:
            yield from self._add(Kind.MESSAGE, delta.text)
        for piece in delta.tool_calls:
            if self._item is None or self._item.index != piece.index:
                item = self._new(Kind.CALL)
                item.index, item.call_id, item.name = piece.index, piece.id, piece.name
                yield from self._begin(item)
                self._item = item
            if piece.arguments_json:
                yield self._item.delta(piece.arguments_json)

    def _take_completion(self, completion: reasoning_pb2.Completion) -> Iterator[Json]:
        self._completion = completion
        if all(item.kind is self._reasoning for item in self._begun()):
            yield from self._begin(self._new(Kind.MESSAGE))  # an empty answer is one too
        yield from self._end()
        void = {call.index: call for call in completion.malformed_tool_calls}
        told = [item.index for item in self._done if item.index in void]
        self._done = [item for item in self._done if item.index not in void]
        if told and self._request.stream:
            raise void_call(void[told[0]])
        status = self._status()
        yield {"type": f"response.{status}", "response": self._response(status)}

    def _add(self, kind: Kind, text: str) -> Iterator[Json]:
        if self._item is None or self._item.kind is not kind:
            yield from self._begin(self._new(kind))
        assert self._item is not None
        yield self._item.delta(text)

    def _begin(self, item: Item) -> Iterator[Json]:
        yield from self._end()
        self._item = item
        yield from item.opening()

    def _end(self) -> Iterator[Json]:
        if self._item is not None:
            yield from self._item.closing()
            self._done.append(self._item)
            self._item = None

    def _new(self, kind: Kind) -> Item:
        return Item.new(kind, self._plan.request_id, position=len(self._begun()))

    def _begun(self) -> list[Item]:
        return self._done if self._item is None else [*self._done, self._item]

    def _numbered(self, event: Json) -> Json:
        event["sequence_number"] = self._events
        self._events += 1
        return event

    def _status(self) -> str:
        done = self._completion
        cut = done is not None and done.finish_reason == generation_pb2.FINISH_REASON_LENGTH
        return "incomplete" if cut else "completed"

    def _response(self, status: str) -> Json:
        request, done = self._request, self._completion
        curfew = account.plan(self._plan) | ({} if done is None else account.outcome(done))
        response_format = request.text.format
        return {
            "id": f"resp_{self._plan.request_id}",
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [item.json("completed") for item in self._done],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort, "summary": request.reasoning.summary},
            "store": False,
            "temperature": request.temperature,
            "text": {
                "format": {"type": "text"}
                if response_format is None
                else response_format.model_dump(by_alias=True)
            },
            "tool_choice": _choice(request.tool_choice),
            "tools": [{**tool.model_dump(), "strict": True} for tool in request.tools or ()],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if done is None else _usage(done.usage),
            "curfew": curfew,
        }


def _choice(choice: str | Choice | None) -> object:
    return choice.model_dump() if isinstance(choice, Choice) else choice or "auto"


def _usage(usage: generation_pb2.TokenUsage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
