"""The items of a response's output, and the events of a stream that build them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from controller.http.account import Json


class Kind(Enum):
    """What an item is. REASONING holds the reasoning as its content, SUMMARY as its summary."""

    REASONING = "reasoning"
    SUMMARY = "summary"
    MESSAGE = "message"
    CALL = "call"


@dataclass(slots=True)
class Item:
    """An item as far as it has come. position: in the output. index, call_id, name: of a call."""

    kind: Kind
    id: str
    position: int
    text: str = ""
    index: int = -1
    call_id: str = ""
    name: str = ""

    @classmethod
    def new(cls, kind: Kind, request_id: str, position: int) -> Item:
        """An empty one of a request."""
        return cls(kind, f"{_PREFIX[kind]}_{request_id}_{position}", position)

    def json(self, status: str) -> Json:
        """As the API shows it. status: in_progress or completed; one in progress has no content yet."""
        head: Json = {"id": self.id, "status": status}
        begun = status == "in_progress"
        if self.kind is Kind.CALL:
            arguments = "" if begun else self.text
            call = {"call_id": self.call_id, "name": self.name, "arguments": arguments}
            return head | {"type": "function_call", **call}
        parts = [] if begun else [self.part(self.text)]
        match self.kind:
            case Kind.REASONING:
                return head | {"type": "reasoning", "summary": [], "content": parts}
            case Kind.SUMMARY:
                return head | {"type": "reasoning", "summary": parts}
        return head | {"type": "message", "role": "assistant", "content": parts}

    def part(self, text: str) -> Json:
        """Its only part with this text. Not of a call, which has none."""
        return _PART[self.kind](text)

    def opening(self) -> list[Json]:
        """The events with which it begins."""
        events: list[Json] = [_added(self, "response.output_item.added", "in_progress")]
        if self.kind is not Kind.CALL:
            events.append(self._event(f"response.{_PART_EVENT[self.kind]}.added", part=self.part("")))
        return events

    def delta(self, text: str) -> Json:
        """The event with which text is added to it."""
        self.text += text
        extra: Json = {"logprobs": []} if self.kind is Kind.MESSAGE else {}
        return self._event(f"response.{_TEXT_EVENT[self.kind]}.delta", delta=text, **extra)

    def closing(self) -> list[Json]:
        """The events with which it is complete."""
        if self.kind is Kind.CALL:
            done = self._event("response.function_call_arguments.done", arguments=self.text)
            return [done, _added(self, "response.output_item.done", "completed")]
        extra: Json = {"logprobs": []} if self.kind is Kind.MESSAGE else {}
        return [
            self._event(f"response.{_TEXT_EVENT[self.kind]}.done", text=self.text, **extra),
            self._event(f"response.{_PART_EVENT[self.kind]}.done", part=self.part(self.text)),
            _added(self, "response.output_item.done", "completed"),
        ]

    def _event(self, kind: str, **content: object) -> Json:
        where: Json = {"type": kind, "item_id": self.id, "output_index": self.position}
        if self.kind is Kind.SUMMARY:
            where["summary_index"] = 0
        elif self.kind is not Kind.CALL:
            where["content_index"] = 0
        return where | content


def _added(item: Item, kind: str, status: str) -> Json:
    return {"type": kind, "output_index": item.position, "item": item.json(status)}


_PREFIX = {Kind.REASONING: "rs", Kind.SUMMARY: "rs", Kind.MESSAGE: "msg", Kind.CALL: "fc"}
_PART: dict[Kind, Callable[[str], Json]] = {
    Kind.REASONING: lambda text: {"type": "reasoning_text", "text": text},
    Kind.SUMMARY: lambda text: {"type": "summary_text", "text": text},
    Kind.MESSAGE: lambda text: {"type": "output_text", "text": text, "annotations": [], "logprobs": []},
}
_PART_EVENT = {
    Kind.REASONING: "content_part",
    Kind.SUMMARY: "reasoning_summary_part",
    Kind.MESSAGE: "content_part",
}
_TEXT_EVENT = {
    Kind.REASONING: "reasoning_text",
    Kind.SUMMARY: "reasoning_summary_text",
    Kind.MESSAGE: "output_text",
    Kind.CALL: "function_call_arguments",
}
