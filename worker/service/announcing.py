"""Makes a worker known to controllers. Whatever comes of it, the worker serves on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import grpc

from curfew.rpc.addresses import host_and_port
from curfew.rpc.tls import Dialler, Tls
from curfew.v1.registry_pb2 import AnnounceRequest
from curfew.v1.registry_pb2_grpc import RegistryServiceStub

logger = logging.getLogger(__name__)

_CALL_S = 1.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0
_LEAST_PAUSE_S = 0.05
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a worker's command that say where and as what it announces itself."""
    parser.add_argument(
        "--announce",
        type=host_and_port,
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a controller's --admin address, or that of a name behind which several stand that share their "
        "state: the worker makes itself known there; may be given several times",
    )
    parser.add_argument(
        "--advertise",
        type=host_and_port,
        metavar="HOST:PORT",
        help="where controllers reach it; if not given, --listen",
    )


def advertised(options: argparse.Namespace, bound: str) -> str:
    """The address to announce. bound: the one that it listens on. Raises ValueError when that reaches
    nothing from outside.
    """
    given: str | None = options.advertise
    if given is None and bound.rpartition(":")[0] in ("0.0.0.0", "[::]"):
        raise ValueError(f"--announce: {bound} stands for every address; --advertise HOST:PORT is needed")
    return given or bound


class Announcer:
    """Announces a worker to some controllers, each by itself, again and again before its lease ends."""

    def __init__(
        self,
        controllers: Sequence[str],
        announcement: Callable[[], AnnounceRequest],
        spread: Callable[[], float],
        *,
        tls: Tls | None = None,
        key: str = "",
    ) -> None:
        """announcement: the worker as it is now. spread: a random number in [0, 1). tls: how the connections
        are encrypted; None: they are not. key: what the worker announces itself with; empty where a
        certificate is enough. Raises OSError, and ValueError for a file of `tls` that does not fit.
        """
        self._announcement = announcement
        self._spread = spread
        self._draining = False
        dialler = Dialler(tls, _CHANNEL_OPTIONS)
        self._targets = [_Target(address, dialler, key) for address in controllers]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins, once the worker can serve."""
        self._tasks = [asyncio.create_task(self._repeat(target)) for target in self._targets]

    def drain(self) -> None:
        """Tells at once that the worker takes nothing new."""
        self._draining = True
        for target in self._targets:
            target.news.set()

    async def end(self) -> None:
        """Ends the leases, where a controller answers at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._leave(target) for target in self._targets))

    async def _repeat(self, target: _Target) -> None:
        failures = 0
        while True:
            target.news.clear()
            try:
                pause_s = await target.announce(self._message()) / 3
                failures = 0
            except grpc.aio.AioRpcError as error:
                if not failures:
                    logger.warning(
                        "controller %s takes no announcement: %s: %s",
                        target.address,
                        error.code().name,
                        error.details(),
                    )
                pause_s = (0.5 + self._spread()) * min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10))
                failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_LEAST_PAUSE_S, pause_s)):
                    await target.news.wait()

    async def _leave(self, target: _Target) -> None:
        message = self._message()
        message.gone = True
        try:
            await target.announce(message)
        except grpc.aio.AioRpcError as error:
            logger.info("controller %s was not told of the end: %s", target.address, error.details())
        finally:
            await target.close()

    def _message(self) -> AnnounceRequest:
        message = self._announcement()
        message.draining = self._draining
        return message


class _Target:
    """A controller."""

    def __init__(self, address: str, dialler: Dialler, key: str) -> None:
        self.address = address
        self.news = asyncio.Event()
        """There is something to tell before the lease asks for it."""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else None
        self._dialler = dialler
        self._open()

    def _open(self) -> None:
        """Opens the channel. One before it goes with its last call."""
        self._version = self._dialler.version
        self._channel = self._dialler.open(self.address)
        self._announce = RegistryServiceStub(self._channel).Announce

    async def announce(self, message: AnnounceRequest) -> float:
        """Returns the lease in seconds. Raises AioRpcError."""
        try:
            response = await self._announce(message, timeout=_CALL_S, metadata=self._metadata)
        except grpc.aio.AioRpcError:
            if self._dialler.version != self._version:
                self._open()
            raise
        return response.lease.seconds + response.lease.nanos / 1e9

    async def close(self) -> None:
        """Gives the connection back."""
        await self._channel.close()
