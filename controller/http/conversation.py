"""A conversation on its way from a request of the API to one of the contract."""

from __future__ import annotations

import re

from curfew.v1 import generation_pb2


class Conversation:
    """Turns as they are added, in the contract's form.

    Texts of the system, of which APIs allow several, are one when they stand at the beginning.
    """

    def __init__(self) -> None:
        self._messages: list[generation_pb2.Message] = []
        self._system: list[str] = []
        """The texts at the beginning. Joined once: to add each to those before takes time by their square."""
        self.origins: list[int] = []
        """For each message, the position in the request of what it was first made of."""

    @property
    def messages(self) -> list[generation_pb2.Message]:
        """The turns so far."""
        if len(self._system) > 1:
            self._messages[0].content = "\n\n".join(self._system)
        return self._messages

    def add(self, origin: int, message: generation_pb2.Message) -> None:
        """Adds a turn."""
        if message.role == generation_pb2.ROLE_SYSTEM and len(self._messages) == min(1, len(self._system)):
            self._system.append(message.content)
            if len(self._system) > 1:
                return
        self._messages.append(message)
        self.origins.append(origin)

    def add_call(self, origin: int, call: generation_pb2.ToolCall) -> None:
        """Adds a call to the assistant's turn that stands last, or makes one."""
        last = self._messages[-1] if self._messages else None
        if last is None or last.role != generation_pb2.ROLE_ASSISTANT:
            last = generation_pb2.Message(role=generation_pb2.ROLE_ASSISTANT)
            self.add(origin, last)
        last.tool_calls.append(call)

    def origin(self, path: str) -> str:
        """The path of a field with the position in the request in place of that of the message."""
        return _INDEXED.sub(lambda found: f"messages[{self.origins[int(found[1])]}]", path)


_INDEXED = re.compile(r"^messages\[(\d+)\]")
