"""The client for threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from types import TracebackType
from typing import Self, Unpack

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

Begin = Callable[
    [Attempt, reasoning_pb2.GenerateRequest], "grpc._CallIterator[reasoning_pb2.GenerateResponse]"
]


class Stream(Iterator[Event]):
    """The events of one request, as they come: `for event in stream`, or `reasoning_text()`, then
    `answer_text()`, then `reply()`.

    The request is sent when the first event is asked for. Leaving `with`, `close()`, and any exception while
    an event is awaited, cancel it: the service stops within a step. Raises CurfewError.
    """

    def __init__(self, exchange: Exchange, begin: Begin) -> None:
        self._exchange = exchange
        self._begin = begin
        self._call: grpc._CallIterator[reasoning_pb2.GenerateResponse] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def plan(self) -> Plan | None:
        """The plan, once it has come."""
        return self._exchange.plan

    def __next__(self) -> Event:
        try:
            while (event := self._exchange.next()) is None:
                self._advance()
        except BaseException:
            self.close()
            raise
        return event

    def reasoning_text(self) -> Iterator[str]:
        """What the model reasons, piece by piece. Ends where it does; the answer is still to be read."""
        for event in self:
            if ends_reasoning(event):
                self._exchange.put_back(event)
                return
            if isinstance(event, Delta) and event.phase is Phase.REASONING:
                yield event.text

    def answer_text(self) -> Iterator[str]:
        """What the model answers, piece by piece, past the reasoning that is left."""
        for event in self:
            if isinstance(event, Delta) and event.phase is Phase.ANSWER:
                yield event.text

    def reply(self) -> Reply:
        """Reads what is left, and returns all that came."""
        for _ in self:
            pass
        return self._exchange.reply()

    def close(self) -> None:
        """Cancels the request unless it has ended. May be called from any thread, and again."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def _advance(self) -> None:
        """Waits for a message, or for the time to try again."""
        if self._closed.is_set():
            if self._exchange.completion is not None:
                raise StopIteration
            raise Cancelled(Code.CANCELLED, "the stream was closed")
        if self._call is None:
            self._call = self._begin(*self._exchange.begin())
            if self._closed.is_set():  # by another thread, which has not seen the call
                self._call.cancel()
        try:
            response = next(self._call)
        except StopIteration:
            self._exchange.ended()
            raise
        except grpc.RpcError as failure:
            error = of_call(failure)
        else:
            self._exchange.take(response)
            return
        wait_s = self._exchange.failed(error)
        self._call = None
        self._closed.wait(wait_s)


class Client:
    """Calls a controller in the name of one tenant. May be shared by threads.

    with Client("127.0.0.1:7200", key="…") as client:
        for text in client.generate("What is 12 + 37?", deadline_s=2.0).answer_text():
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
        """address: HOST:PORT of the controller, or of several that serve the same policy: where one is not
        available, the next is asked. key: the tenant's API key, visible ASCII characters. random: spreads
        retries.

        Connects with the first request. Raises ValueError for a wrong key or no address, OSError for an
        unreadable file of `tls`.
        """
        connection = Connection(address, key, tls)
        self._metadata = connection.metadata
        self._retry = retry
        self._random = random or Random()
        self._addresses = Addresses(len(connection.addresses))
        self._channels = [connection.open(each) for each in connection.addresses]
        self._stubs = [ReasoningServiceStub(channel) for channel in self._channels]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections, and cancels what still runs on them."""
        self._addresses.closed = True
        for channel in self._channels:
            channel.close()

    def generate(self, question: str | Sequence[Message], **options: Unpack[Options]) -> Stream:
        """Asks, and streams what comes. question: a text, or a conversation whose last turn is the user's."""
        return self._stream(question, options)

    def ask(self, question: str | Sequence[Message], **options: Unpack[Options]) -> Reply:
        """Asks, and waits for all that comes. Raises CurfewError.

        Where the controller or its worker is lost before the end, the request begins anew, at the next
        address: nothing was shown yet. Within the deadline, and as often as `Retry` says.
        """
        with self._stream(question, options, unseen=True) as stream:
            return stream.reply()

    def plan(self, question: str | Sequence[Message], **options: Unpack[Options]) -> Plan:
        """What would be decided for this request now; nothing is run. Raises CurfewError."""
        request, attempts = wire.request(question, options), self._attempts(options)
        while True:
            attempt = attempts.begin()
            message = reasoning_pb2.PlanRequest(request=within(request, attempt))
            try:
                response = self._stubs[attempt.address].Plan(
                    message, timeout=attempt.timeout_s, metadata=self._metadata
                )
            except grpc.RpcError as failure:
                error = of_call(failure)
            else:
                attempts.succeeded()
                return wire.plan(response.plan)
            time.sleep(attempts.after(error))

    def report_outcome(self, request_id: str, score: float) -> None:
        """Tells how good an answer was: the tenant's quality curve is learnt from it. Raises CurfewError.

        request_id: from the plan. score: 0 wrong, 1 right, or between. Never tried again: it may have been
        counted.
        """
        message = reasoning_pb2.ReportOutcomeRequest(request_id=request_id, score=score)
        try:
            self._stubs[self._addresses.preferred].ReportOutcome(message, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise of_call(failure) from None

    def _stream(self, question: str | Sequence[Message], options: Options, *, unseen: bool = False) -> Stream:
        metadata = (*self._metadata, *current_trace())

        def begin(
            attempt: Attempt, message: reasoning_pb2.GenerateRequest
        ) -> grpc._CallIterator[reasoning_pb2.GenerateResponse]:
            stub = self._stubs[attempt.address]
            return stub.Generate(message, timeout=attempt.timeout_s, metadata=metadata)

        request, attempts = wire.request(question, options), self._attempts(options)
        return Stream(Exchange(request, attempts, unseen=unseen), begin)

    def _attempts(self, options: Options) -> Attempts:
        return Attempts(self._retry, options, self._addresses, time.monotonic, self._random)
