"""Runs the door in the controller's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from controller.http.app import application
from controller.http.protocol import Protocol
from controller.http.tls import server_context
from controller.service.requests import Requests
from curfew.rpc.addresses import listening
from curfew.rpc.drain import Drain
from curfew.rpc.tls import ServerTls

MAX_HEADER_BYTES = 16 * 1024
"""Of a request's line and headers; more is refused with 400, and the connection closed."""
LAST_WORDS_S = 1
"""In which the last bytes must be out, once nothing runs any more."""
IDLE_S = 75
"""For which a connection is kept without a request."""


class HttpServer:
    """The HTTP door on one address."""

    def __init__(
        self,
        requests: Requests,
        unix_time: Callable[[], float],
        *,
        most_bytes: int,
        tls: ServerTls | None = None,
    ) -> None:
        """most_bytes: of a request's body. tls: None serves in clear."""
        self._drain = Drain()
        self._app = application(requests, self._drain, unix_time, most_bytes)
        self._tls = tls
        self._uvicorn: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, address: str) -> str:
        """Binds and serves. Returns the bound address (port 0 picks a free one). Raises OSError when it
        cannot be had.
        """
        bound = listening(address)
        context = None if self._tls is None else server_context(self._tls)
        config = uvicorn.Config(
            self._app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=LAST_WORDS_S,
            ssl_context_factory=None if context is None else lambda _, __: context,
        )
        self._uvicorn = _Uvicorn(config)
        self._serving = asyncio.create_task(self._uvicorn.serve([bound]))
        await self._uvicorn.bound.wait()
        return f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests, lets those that run end within `grace_s` seconds, ends the rest, and stops.
        Who is refused or ended is told so.
        """
        if self._uvicorn is None or self._serving is None:
            return
        self._drain.begin(grace_s)
        await self._drain.ended()
        self._uvicorn.should_exit = True
        await self._serving


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the controller, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.bound = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.bound.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
