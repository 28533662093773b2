"""The flags for telemetry, which both services have."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from curfew.rpc.addresses import host_and_port
from curfew.telemetry.logs import LogFormat
from curfew.telemetry.metric import Read
from curfew.telemetry.tracing import Tracing

EXTRA = "pip install 'curfew[telemetry]'"


class TelemetryError(ValueError):
    """What a flag asks for cannot be had; the message is one line."""


def add_telemetry_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds them to a service's command line, as a group, to which it may add."""
    group = parser.add_argument_group("telemetry", f"metrics and traces need {EXTRA}")
    group.add_argument(
        "--metrics",
        type=host_and_port,
        metavar="HOST:PORT",
        help="serve metrics for Prometheus at http://HOST:PORT/metrics; port 0 picks a free one (nowhere)",
    )
    group.add_argument(
        "--otlp",
        nargs="?",
        const="",
        metavar="TARGET",
        help="send traces there over OTLP and gRPC: HOST:PORT in clear text, or a URL; without a value, "
        "where OTEL_EXPORTER_OTLP_ENDPOINT says (nowhere)",
    )
    group.add_argument(
        "--trace-ratio",
        type=_ratio,
        metavar="RATIO",
        help="of the traces that begin here, how many are sent, from 0 to 1 (as OTEL_TRACES_SAMPLER says, "
        "or all)",
    )
    group.add_argument(
        "--log-format",
        choices=[form.value for form in LogFormat],
        default=LogFormat.TEXT.value,
        help="of log lines (%(default)s)",
    )
    return group


def require_extra(options: argparse.Namespace) -> None:
    """Raises TelemetryError where a flag needs a library that is not installed: for services that have long
    work before them until they would notice.
    """
    if options.metrics is not None:
        _prometheus()
    if options.otlp is not None:
        _otlp()


@asynccontextmanager
async def metrics_endpoint(address: str | None, read: Read) -> AsyncIterator[str | None]:
    """Serves metrics at an address, if there is one, until the end. Gives the bound one.

    Raises TelemetryError when it cannot.
    """
    if address is None:
        yield None
        return
    endpoint = _prometheus()(address, read)
    async with AsyncExitStack() as stack:
        try:
            bound = await stack.enter_async_context(endpoint)
        except OSError as error:
            raise TelemetryError(f"--metrics: cannot listen on {address}: {error.strerror}") from None
        yield bound


@asynccontextmanager
async def tracing_to(
    target: str | None, service: str, ratio: float | None, clock: Callable[[], float]
) -> AsyncIterator[Tracing | None]:
    """Traces that are sent to a target, if there is one, until the end; see `otlp`. Raises TelemetryError."""
    if target is None:
        yield None
        return
    async with _otlp()(target, service, ratio, clock) as tracing:
        yield tracing


def _prometheus() -> Callable[[str, Read], AbstractAsyncContextManager[str]]:
    try:
        from curfew.telemetry.prometheus import serve_metrics
    except ModuleNotFoundError as error:
        raise TelemetryError(f"--metrics needs {error.name}: {EXTRA}") from None
    return serve_metrics


def _otlp() -> Callable[[str, str, float | None, Callable[[], float]], AbstractAsyncContextManager[Tracing]]:
    try:
        from curfew.telemetry.otlp import traces_over_otlp
    except ModuleNotFoundError as error:
        raise TelemetryError(f"--otlp needs {error.name}: {EXTRA}") from None
    return traces_over_otlp


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return ratio
