"""What comes from a caller: the body, within bounds of size and time, and the news that it has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from curfew.rpc.errors import RpcError, reason


async def read_body(request: Request, most_bytes: int, within_s: float) -> bytes:
    """All of it. Raises RpcError when it is too long or takes too long, ClientDisconnect when the caller has
    left.
    """
    _check(int(request.headers.get("content-length", "0")), most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                body += chunk
                _check(len(body), most_bytes)
    except TimeoutError:
        raise RpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the request's body did not come within {within_s:g} s",
            reason("BODY_TOO_SLOW"),
        ) from None
    return bytes(body)


def _check(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise RpcError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the request's body has {size} bytes or more; allowed are at most {most_bytes}",
            reason("BODY_TOO_LARGE"),
        )


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Ends what runs under it with ClientDisconnect as soon as the caller has left. receive: with the body
    read.
    """
    scope = asyncio.timeout(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        async with scope:
            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if scope.expired():
            raise ClientDisconnect from None
        raise
