"""A caller's side of Curfew: one question, a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import grpc

from curfew.v1 import generation_pb2, reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub


class Client:
    """Calls a controller in the name of one tenant.

    async with Client("127.0.0.1:7200", key="…") as client:
        async for event in client.generate(request):
            ...
    """

    def __init__(self, address: str, *, key: str) -> None:
        """address: HOST:PORT of the controller. key: the tenant's API key, visible ASCII characters.

        Raises ValueError for a key that has others.
        """
        if not (key.isascii() and key.isprintable()):
            raise ValueError("an API key consists of visible ASCII characters")
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = ReasoningServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def generate(
        self, request: reasoning_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        """Streams the plan, deltas and the completion. Closing the generator cancels the request.

        Raises grpc.aio.AioRpcError with the status codes that ReasoningService documents.
        """
        call = self._stub.Generate(request, metadata=self._metadata, timeout=timeout_s)
        try:
            async for response in call:
                yield response
        finally:
            # Leaving the loop does not end the call: without this the worker would go on to the end.
            call.cancel()


def ask(text: str, *, system: str = "") -> reasoning_pb2.GenerateRequest:
    """The request of a single question, with an optional system text."""
    messages = [generation_pb2.Message(role=generation_pb2.ROLE_USER, content=text)]
    if system:
        messages.insert(0, generation_pb2.Message(role=generation_pb2.ROLE_SYSTEM, content=system))
    return reasoning_pb2.GenerateRequest(messages=messages)
