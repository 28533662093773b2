"""A gRPC server with what every service of Curfew has beside its own methods, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from curfew.rpc.addresses import cannot_listen
from curfew.rpc.calls import Authorise, Calls
from curfew.rpc.reading import Reading
from curfew.rpc.tls import ServerTls

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_MAX_STREAMS = 1024
"""Calls of one connection at a time, those that it has taken back and gRPC has not cleared away included."""
_MAX_WAITING = 16 * _MAX_STREAMS
"""Calls of all connections that have come and were not taken up yet, at some 15 KiB each."""

# What one connection may cost before anybody knows whose it is.
_BOUNDS = (
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
    # Beyond the first gRPC drops new calls at random, beyond the second all, whoever makes them, and tells
    # CANCELLED. It would begin at 1000, which two connections reach: others would lose calls by them.
    ("grpc.server.max_pending_requests", _MAX_WAITING),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_WAITING),
    # A handshake or a first frame that does not come; gRPC's own limit is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Pings without data between them: a link's keepalive is 20 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

# How long those who watch the health, who never leave by themselves, have to hear NOT_SERVING.
_LAST_WORDS_S = 0.1


class Server:
    """Serves on one address: the services added, health (grpc.health.v1), reflection and, where told so,
    channelz.
    """

    def __init__(
        self,
        *,
        max_message_bytes: int,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        tls: ServerTls | None = None,
        authorise: Authorise | None = None,
        shows_connections: bool = False,
    ) -> None:
        """max_message_bytes: larger requests are refused with RESOURCE_EXHAUSTED before they are read.
        interceptors: of calls, inside of what gives them statuses and their end. tls: how connections are
        encrypted; None: they are not. authorise: as of `Calls`. shows_connections: whether there is channelz,
        which tells who else is connected.
        """
        self._tls = tls
        self._calls = Calls(authorise)
        self.grpc = grpc.aio.server(
            interceptors=[Reading(), self._calls, *interceptors],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                *_BOUNDS,
                # A restarted process must not share its port with a dying one.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if shows_connections:
            channelz.add_channelz_servicer(self.grpc)
        self._names: list[str] = []

    async def start(self, address: str, services: Iterable[str]) -> str:
        """Binds and starts, not yet serving by its health. `services` are full names, for health and
        reflection.

        Returns the bound address (port 0 picks a free one). Raises OSError when the address or a file of
        `tls` cannot be had, ValueError for a file that does not fit.
        """
        self._names = ["", *services]
        names = [*self._names[1:], health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self.grpc)
        await self.set_serving(False)
        host = address.rpartition(":")[0]
        try:
            if self._tls is None:
                port = self.grpc.add_insecure_port(address)
            else:
                port = self.grpc.add_secure_port(address, self._tls.credentials())
        except RuntimeError:
            raise OSError(cannot_listen(address)) from None
        await self.grpc.start()
        return f"{host}:{port}"

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of all its services."""
        for name in self._names:
            await self._health.set(name, SERVING if serving else NOT_SERVING)

    async def set_detail(self, name: str, serving: bool) -> None:
        """Sets the health of a part of its own name, of which clients may ask beside that of the services."""
        await self._health.set(name, SERVING if serving else NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """Says that it is not healthy, refuses new streams, lets what runs finish for `grace_s` seconds, ends
        the rest, and stops. Who is refused or ended is told UNAVAILABLE.

        (The grace of gRPC's own `stop` also waits for those who watch the health, which never ends.)
        """
        await self._health.enter_graceful_shutdown()
        await self._calls.drain(grace_s)
        await self.grpc.stop(_LAST_WORDS_S)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` in the running event loop when SIGTERM or SIGINT comes."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM or SIGINT, the second of its kind, ends the process as it stands. (A KeyboardInterrupt would
    unwind it, which threads in the midst of their work do not survive in order.)
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
