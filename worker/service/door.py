"""What every worker's process has around its methods: address, health, metrics, announcements, its end.

Needs no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from curfew.rpc.addresses import check_free, host_and_port
from curfew.rpc.server import Server, ended_by_signals, on_signals
from curfew.telemetry.options import TelemetryError, add_telemetry_options, require_extra
from curfew.v1 import worker_pb2 as pb
from curfew.v1.registry_pb2 import AnnounceRequest
from curfew.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server
from worker.service import responses
from worker.service.announcing import Announcer, add_arguments, advertised
from worker.service.backend import Backend, R, Reader
from worker.service.security import Security, add_security_options
from worker.service.servicer import ServicerSettings, WorkerServicer
from worker.telemetry.running import worker_telemetry

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["WorkerService"].full_name

_MAX_MESSAGE_BYTES = 8 << 20
# What a call is given to hear that the device has failed.
_FAILURE_GRACE_S = 2.0
_LOOK_S = 1.0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, except those that stand for nothing given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is False or action.default in (None, "", [])
        return action.help if nothing else super()._get_help_string(action)


def add_door_options(parser: argparse.ArgumentParser) -> None:
    """What `serve_until_told` reads, and the options of security."""
    add = parser.add_argument
    add(
        "--listen",
        type=host_and_port,
        default="127.0.0.1:7210",
        metavar="HOST:PORT",
        help="address; port 0 picks a free one",
    )
    add("--flush-ms", type=number, default=5.0, help="least time between two deltas of a stream")
    add_arguments(parser)
    add("--grace-s", type=number, default=30.0, help="time to finish in when told to stop")
    add_security_options(parser)
    add_telemetry_options(parser)


def check_door(options: argparse.Namespace) -> None:
    """Finds what would keep `serve_until_told` from serving, before anything slow is done for it. Raises
    OSError and ValueError.
    """
    require_extra(options)
    if options.announce:
        advertised(options, options.listen)
    check_free(options.listen)


async def serve_until_told(
    options: argparse.Namespace,
    backend: Backend[R],
    reader: Reader[R],
    description: pb.DescribeWorkerResponse,
    security: Security,
    *,
    stop: asyncio.Event,
    begin: Callable[[], None] | None = None,
    end: Callable[[], Awaitable[None]] | None = None,
    failed: Callable[[], bool] = lambda: False,
    healthy: Callable[[], Awaitable[bool]] | None = None,
) -> int:
    """Serves until `stop` is set or a signal comes, then drains. Returns the exit status.

    begin: called once it has its address, before it says that it serves; end: last. failed: whether the
    device has. healthy: asked again and again, where requests depend on something else.
    """
    async with AsyncExitStack() as at_end:
        try:
            telemetry = await at_end.enter_async_context(
                worker_telemetry(options, description, lambda: responses.load(backend.load), failed)
            )
        except TelemetryError as error:
            return cannot_start(error)
        server = Server(
            max_message_bytes=_MAX_MESSAGE_BYTES,
            interceptors=telemetry.interceptors,
            tls=security.tls,
            authorise=security.authorise,
            shows_connections=True,
        )
        servicer = WorkerServicer(
            backend,
            reader,
            description,
            ServicerSettings(flush_s=options.flush_ms / 1000),
            clock=time.monotonic,
            random_seed=lambda: random.getrandbits(63),
        )
        add_WorkerServiceServicer_to_server(servicer, server.grpc)
        try:
            address = await server.start(options.listen, [SERVICE])
            reached = advertised(options, address) if options.announce else address
        except (OSError, ValueError) as error:
            return cannot_start(error)
        if begin is not None:
            begin()
        await server.set_serving(True)
        instance = secrets.token_hex(8)
        announcer = Announcer(
            options.announce,
            lambda: AnnounceRequest(
                address=reached,
                instance=instance,
                model=description.model,
                version=description.version,
                slots=description.limits.slots,
                load=backend.load.running + backend.load.waiting,
            ),
            random.random,
            tls=security.announce,
            key=security.announce_key,
        )
        announcer.start()
        print(f"curfew worker ready: listen={address}{telemetry.addresses}", flush=True)
        looking = None if healthy is None else asyncio.create_task(_follow(healthy, server))
        with on_signals(stop.set):
            await stop.wait()
        logger.info("draining")
        if looking is not None:
            looking.cancel()
        with ended_by_signals():
            announcer.drain()
            await server.drain(_FAILURE_GRACE_S if failed() else options.grace_s)
            await announcer.end()
            if end is not None:
                await end()
        return 1 if failed() else 0


async def _follow(healthy: Callable[[], Awaitable[bool]], server: Server) -> None:
    """Says that it serves while that on which requests depend is well."""
    serving = True
    while True:
        await asyncio.sleep(_LOOK_S)
        well = await healthy()
        if well != serving:
            serving = well
            logger.warning("what this worker depends on %s", "is back" if well else "does not answer")
            await server.set_serving(well)


def cannot_start(why: Exception) -> int:
    """Says why in a line. Returns the exit status."""
    print(f"curfew worker: {str(why).partition(chr(10))[0]}", file=sys.stderr)
    return 2


def positive(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    return at_least(1, text)


def count(text: str) -> int:
    """A whole number of at least 0. Raises ArgumentTypeError."""
    return at_least(0, text)


def at_least(least: int, text: str) -> int:
    """A whole number that is not less. Raises ArgumentTypeError."""
    value = int(text) if text.isdecimal() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def number(text: str) -> float:
    """A number of at least 0 and below a million. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0 and below a million")
    return value
