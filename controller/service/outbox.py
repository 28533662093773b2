"""Events on their way to one caller."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import groupby

from curfew.v1 import generation_pb2, reasoning_pb2

# With 20 log-probabilities for each, so many tokens are a message of a few hundred KiB; a gRPC client takes
# 4 MiB.
_MAX_RUN_TOKENS = 1024


class _Run:
    """Consecutive deltas of one phase that the caller has not taken."""

    __slots__ = ("_calls", "_later_texts", "delta")

    def __init__(self, delta: generation_pb2.Delta) -> None:
        self.delta = delta
        self._later_texts: list[str] = []
        self._calls = list(delta.tool_calls)

    def append(self, delta: generation_pb2.Delta) -> None:
        self._later_texts.append(delta.text)
        self.delta.token_ids.extend(delta.token_ids)
        self.delta.token_count += delta.token_count
        if delta.logprobs:
            self.delta.logprobs.extend(delta.logprobs)
        if delta.tool_calls:
            self._calls += delta.tool_calls

    def merged(self) -> generation_pb2.Delta:
        if self._later_texts:
            self.delta.text += "".join(self._later_texts)
        if len(self._calls) > 1:
            merged = [_merged(list(pieces)) for _, pieces in groupby(self._calls, lambda call: call.index)]
            del self.delta.tool_calls[:]
            self.delta.tool_calls.extend(merged)
        return self.delta


def _merged(pieces: list[generation_pb2.ToolCallDelta]) -> generation_pb2.ToolCallDelta:
    """Adjacent pieces of one call; its id and name are in the first."""
    first = pieces[0]
    return generation_pb2.ToolCallDelta(
        index=first.index,
        id=first.id,
        name=first.name,
        arguments_json="".join(piece.arguments_json for piece in pieces),
    )


class Outbox:
    """Holds what a caller has not taken yet, in one message per run of deltas of the same phase; in more
    when it is very long.

    A slow reader thus slows nobody but itself, and what waits for it is never more than the request's output.
    One task puts, one takes.
    """

    def __init__(self) -> None:
        self._events: deque[reasoning_pb2.GenerateResponse | _Run] = deque()
        self._last: _Run | None = None
        self._error: Exception | None = None
        self._closed = False
        self._news = asyncio.Event()

    def put_delta(self, delta: generation_pb2.Delta) -> None:
        """Adds a delta, which is the outbox's from now on."""
        last = self._last
        if (
            last is not None
            and last.delta.phase == delta.phase
            and len(last.delta.token_ids) + len(delta.token_ids) <= _MAX_RUN_TOKENS
        ):
            last.append(delta)
            return
        self._last = _Run(delta)
        self._events.append(self._last)
        self._news.set()

    def put(self, event: reasoning_pb2.GenerateResponse) -> None:
        """Adds an event that is not a delta."""
        self._last = None
        self._events.append(event)
        self._news.set()

    def close(self, error: Exception | None = None) -> None:
        """Nothing follows but, once everything was taken, this error."""
        self._closed = True
        self._error = error
        self._news.set()

    async def take(self) -> reasoning_pb2.GenerateResponse | None:
        """The next event; None at the end. Raises the error that it was closed with."""
        while not self._events:
            if self._closed:
                if self._error is not None:
                    raise self._error
                return None
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        if isinstance(event, _Run):
            if event is self._last:
                self._last = None
            return reasoning_pb2.GenerateResponse(delta=event.merged())
        return event
