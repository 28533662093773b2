"""The client for asyncio: the twin of `sync`, over grpc.aio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from curfew.client import wire
from curfew.client.attempts import RETRY, Addresses, Attempt, Attempts, Retry
from curfew.client.connection import Connection
from curfew.client.errors import Cancelled, Code, of_call
from curfew.client.exchange import Exchange, ends_reasoning, within
from curfew.client.tracing import current_trace
from curfew.client.values import Delta, Event, Message, Options, Phase, Plan, Reply
from curfew.rpc.tls import Tls
from curfew.v1 import reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub

if TYPE_CHECKING:
    from curfew.v1.reasoning_pb2_grpc import ReasoningServiceAsyncStub

Call = grpc.aio.UnaryStreamCall[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]
Begin = Callable[[Attempt, reasoning_pb2.GenerateRequest], Call]


class AsyncStream(AsyncIterator[Event]):
    """The events of one request, as they come: `async for event in stream`, or `reasoning_text()`, then
    `answer_text()`, then `await stream.reply()`.

    The request is sent when the first event is asked for. Leaving `async with`, `aclose()`, and any exception
    while an event is awaited (so also the task's cancellation), cancel it: the service stops within a step.
    Raises CurfewError.
    """

    def __init__(self, exchange: Exchange, begin: Begin) -> None:
        self._exchange = exchange
        self._begin = begin
        self._call: Call | None = None
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def plan(self) -> Plan | None:
        """The plan, once it has come."""
        return self._exchange.plan

    async def __anext__(self) -> Event:
        try:
            while (event := self._exchange.next()) is None:
                await self._advance()
        except BaseException:
            await self.aclose()
            raise
        return event

    async def reasoning_text(self) -> AsyncIterator[str]:
        """What the model reasons, piece by piece. Ends where it does; the answer is still to be read."""
        async for event in self:
            if ends_reasoning(event):
                self._exchange.put_back(event)
                return
            if isinstance(event, Delta) and event.phase is Phase.REASONING:
                yield event.text

    async def answer_text(self) -> AsyncIterator[str]:
        """What the model answers, piece by piece, past the reasoning that is left."""
        async for event in self:
            if isinstance(event, Delta) and event.phase is Phase.ANSWER:
                yield event.text

    async def reply(self) -> Reply:
        """Reads what is left, and returns all that came."""
        async for _ in self:
            pass
        return self._exchange.reply()

    async def aclose(self) -> None:
        """Cancels the request unless it has ended. May be called again."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    async def _advance(self) -> None:
        """Waits for a message, or for the time to try again."""
        if self._closed.is_set():
            if self._exchange.completion is not None:
                raise StopAsyncIteration
            raise Cancelled(Code.CANCELLED, "the stream was closed")
        if self._call is None:
            self._call = self._begin(*self._exchange.begin())
        try:
            response = await self._call.read()
        except grpc.RpcError as failure:
            error = of_call(failure)
        else:
            if isinstance(response, reasoning_pb2.GenerateResponse):
                self._exchange.take(response)
                return
            self._exchange.ended()
            raise StopAsyncIteration
        wait_s = self._exchange.failed(error)
        self._call = None
        try:
            async with asyncio.timeout(wait_s):
                await self._closed.wait()
        except TimeoutError:
            pass


class AsyncClient:
    """Calls a controller in the name of one tenant, within one event loop.

    async with AsyncClient("127.0.0.1:7200", key="…") as client:
        async for text in client.generate("What is 12 + 37?", deadline_s=2.0).answer_text():
            print(text, end="", flush=True)
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        key: str,
        tls: Tls | None = None,
        retry: Retry = RETRY,
        random: Random | None = None,
    ) -> None:
        """Takes and raises what `Client` does."""
        self._connection = Connection(address, key, tls)
        self._retry = retry
        self._random = random or Random()
        self._addresses = Addresses(len(self._connection.addresses))
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections, and cancels what still runs on them."""
        self._addresses.closed = True
        for channel in self._channels.values():
            await channel.close()

    def generate(self, question: str | Sequence[Message], **options: Unpack[Options]) -> AsyncStream:
        """Asks, and streams what comes. question: a text, or a conversation whose last turn is the user's."""
        return self._stream(question, options)

    async def ask(self, question: str | Sequence[Message], **options: Unpack[Options]) -> Reply:
        """Asks, and waits for all that comes; begins anew as `Client.ask` does. Raises CurfewError."""
        async with self._stream(question, options, unseen=True) as stream:
            return await stream.reply()

    async def plan(self, question: str | Sequence[Message], **options: Unpack[Options]) -> Plan:
        """What would be decided for this request now; nothing is run. Raises CurfewError."""
        request, attempts = wire.request(question, options), self._attempts(options)
        while True:
            attempt = attempts.begin()
            message = reasoning_pb2.PlanRequest(request=within(request, attempt))
            try:
                response = await self._stub(attempt.address).Plan(
                    message, timeout=attempt.timeout_s, metadata=self._connection.metadata
                )
            except grpc.RpcError as failure:
                error = of_call(failure)
            else:
                attempts.succeeded()
                return wire.plan(response.plan)
            await asyncio.sleep(attempts.after(error))

    async def report_outcome(self, request_id: str, score: float) -> None:
        """Tells how good an answer was, as `Client.report_outcome` does."""
        message = reasoning_pb2.ReportOutcomeRequest(request_id=request_id, score=score)
        try:
            stub = self._stub(self._addresses.preferred)
            await stub.ReportOutcome(message, metadata=self._connection.metadata)
        except grpc.RpcError as failure:
            raise of_call(failure) from None

    def _stream(
        self, question: str | Sequence[Message], options: Options, *, unseen: bool = False
    ) -> AsyncStream:
        metadata = (*self._connection.metadata, *current_trace())

        def begin(attempt: Attempt, message: reasoning_pb2.GenerateRequest) -> Call:
            stub = self._stub(attempt.address)
            return stub.Generate(message, timeout=attempt.timeout_s, metadata=metadata)

        request, attempts = wire.request(question, options), self._attempts(options)
        return AsyncStream(Exchange(request, attempts, unseen=unseen), begin)

    def _attempts(self, options: Options) -> Attempts:
        return Attempts(self._retry, options, self._addresses, time.monotonic, self._random)

    def _stub(self, index: int) -> ReasoningServiceAsyncStub:
        """A channel belongs to the event loop that it is made in, so it is made with the first call."""
        if index not in self._channels:
            self._channels[index] = self._connection.open_async(self._connection.addresses[index])
        return ReasoningServiceStub(self._channels[index])
