"""The flags for telemetry, which both services have."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from curfew.telemetry.metric import Read

EXTRA = "pip install 'curfew[telemetry]'"


class TelemetryError(Exception):
    """What a flag asks for cannot be had; the message is one line."""


def add_telemetry_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds them to a service's command line, as a group, to which it may add."""
    group = parser.add_argument_group("telemetry", f"metrics and traces need {EXTRA}")
    group.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="serve metrics for Prometheus at http://HOST:PORT/metrics; port 0 picks a free one (nowhere)",
    )
    return group


@asynccontextmanager
async def metrics_endpoint(address: str | None, read: Read) -> AsyncIterator[str | None]:
    """Serves metrics at an address, if there is one, until the end. Gives the bound one.

    Raises TelemetryError when it cannot.
    """
    if address is None:
        yield None
        return
    try:
        from curfew.telemetry.prometheus import serve_metrics
    except ModuleNotFoundError as error:
        raise TelemetryError(f"--metrics needs {error.name}: {EXTRA}") from None
    port = address.rpartition(":")[2]
    if not port.isdecimal() or int(port) > 65535 or len(port) == len(address):
        raise TelemetryError(f"--metrics: {address!r} is not HOST:PORT")
    async with AsyncExitStack() as stack:
        try:
            bound = await stack.enter_async_context(serve_metrics(address, read))
        except OSError as error:
            raise TelemetryError(f"--metrics: cannot listen on {address}: {error.strerror}") from None
        yield bound
