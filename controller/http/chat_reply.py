"""What `/v1/chat/completions` answers."""

from __future__ import annotations

from collections.abc import Iterator

from controller.http import account
from controller.http.account import Json
from controller.http.chat_request import ChatRequest
from controller.http.output import Output, void_call
from curfew.v1 import generation_pb2, reasoning_pb2


class ChatReply:
    """One request's answer, whole or as the chunks of a stream.

    Reasoning comes as `reasoning_content` and, for clients that look there, as `reasoning`.
    """

    def __init__(self, request: ChatRequest, plan: reasoning_pb2.Plan, created_s: int) -> None:
        """created_s: Unix time."""
        self._request = request
        self._output = Output(plan)
        self._envelope: Json = {
            "id": f"chatcmpl-{plan.request_id}",
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": request.model,
        }

    def begin(self) -> Iterator[Json]:
        """The first chunk: who speaks, and the plan."""
        yield self._chunk({"role": "assistant", "content": ""}, curfew=account.plan(self._output.plan))

    def take(self, event: reasoning_pb2.GenerateResponse) -> Iterator[Json]:
        """The chunks that an event makes. Raises RpcError when a call told of is none."""
        self._output.take(event)
        if event.HasField("delta"):
            delta = _delta(event.delta)
            if delta:
                yield self._chunk(delta)
        elif event.HasField("completion"):
            void = self._output.drop_void_calls()
            if void and self._request.stream:
                raise void_call(void[0])
            yield self._chunk({}, self._finish_reason(), account.outcome(event.completion))
            if self._request.include_usage:
                yield {**self._envelope, "choices": [], "usage": self._usage()}

    def failed(self, error: Json) -> Iterator[Json]:
        """The last data of a stream that ends with an error of the API's form."""
        yield {"error": error}

    def whole(self) -> Json:
        """All of it, once every event was taken."""
        output = self._output
        message: Json = {"role": "assistant", "content": output.answer, "refusal": None}
        if output.reasoning:
            message |= {"reasoning_content": output.reasoning, "reasoning": output.reasoning}
        if output.calls:
            message["content"] = output.answer or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in output.calls.values()
            ]
        choice: Json = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._finish_reason(),
        }
        return {
            **self._envelope,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
            "curfew": {**account.plan(output.plan), **account.outcome(output.completion)},
        }

    def _chunk(self, delta: Json, finish_reason: str | None = None, curfew: Json | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk: Json = {**self._envelope, "choices": [choice]}
        if self._request.include_usage:
            chunk["usage"] = None
        if curfew is not None:
            chunk["curfew"] = curfew
        return chunk

    def _finish_reason(self) -> str:
        match self._output.completion.finish_reason:
            case generation_pb2.FINISH_REASON_LENGTH:
                return "length"
            case generation_pb2.FINISH_REASON_TOOL_CALLS:
                return "tool_calls"
        return "stop"

    def _usage(self) -> Json:
        usage = self._output.completion.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.prompt_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        }


def _delta(delta: generation_pb2.Delta) -> Json:
    """Nothing for what has no text to show."""
    if delta.phase == generation_pb2.PHASE_REASONING:
        return {"reasoning_content": delta.text, "reasoning": delta.text} if delta.text else {}
    shown: Json = {"content": delta.text} if delta.text else {}
    if delta.tool_calls:
        shown["tool_calls"] = [_call(piece) for piece in delta.tool_calls]
    return shown


def _call(piece: generation_pb2.ToolCallDelta) -> Json:
    function: Json = {"arguments": piece.arguments_json}
    if not piece.id:
        return {"index": piece.index, "function": function}
    function["name"] = piece.name
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
