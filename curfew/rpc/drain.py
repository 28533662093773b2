"""The orderly end of what runs on a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from curfew.rpc.errors import RpcError, reason, retry_after


class Drain:
    """Ends what runs with its server: not at once, but by the end of a time of grace."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._end_s: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def begun(self) -> bool:
        """Whether nothing new should begin."""
        return self._end_s is not None

    def begin(self, grace_s: float) -> None:
        """From now on, nothing runs for longer than `grace_s` seconds."""
        self._end_s = asyncio.get_running_loop().time() + grace_s
        for scope in self._scopes:
            scope.reschedule(self._end_s)

    async def ended(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """What runs under it raises RpcError, UNAVAILABLE, when the time of grace is over."""
        scope = asyncio.timeout_at(self._end_s)
        try:
            async with scope:
                self._scopes.add(scope)
                self._idle.clear()
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
                    if not self._scopes:
                        self._idle.set()
        except TimeoutError:
            if scope.expired():
                raise shutting_down() from None
            raise


def shutting_down() -> RpcError:
    """Another server is to be asked."""
    return RpcError(
        grpc.StatusCode.UNAVAILABLE, "the server is shutting down", retry_after(1.0), reason("DRAINING")
    )
