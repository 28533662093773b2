"""In whose name the tool asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from curfew.client import AsyncClient


class NoKeyError(Exception):
    """An agent brought no API key, and the server has none of its own."""


class Clients:
    """Clients of a controller: one with the server's own key, which stays, and one for each call of an agent
    that brings a key (`authorization: Bearer KEY`, over HTTP).
    """

    def __init__(self, open_client: Callable[[str], AsyncClient], key: str | None) -> None:
        """open_client: makes one from a key. key: the server's own; None if each agent must bring one."""
        self._open = open_client
        self._own = None if key is None else open_client(key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            await self._own.close()

    @asynccontextmanager
    async def of(self, headers: Mapping[str, str] | None) -> AsyncIterator[AsyncClient]:
        """That of an agent with these headers; None where its transport has none. Raises NoKeyError."""
        scheme, _, key = (headers or {}).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key:
            async with self._open(key) as client:
                yield client
        elif self._own is not None:
            yield self._own
        else:
            raise NoKeyError("no API key: send authorization: Bearer KEY")
