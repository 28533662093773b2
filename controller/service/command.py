"""The controller's command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from controller.options import positive
from controller.policy import LivePolicy, PolicyError, load_policy
from controller.service.membership import Sources
from controller.service.recording import Recorder, RecordingFormat
from controller.service.reload import log_doubts, watch
from controller.service.security import Security, add_security_options, read_security
from controller.service.server import Addresses, Controller
from controller.state.connect import open_store
from controller.state.shared import Timings
from controller.state.store import StoreError
from controller.telemetry.settings import TelemetrySettings
from curfew.rpc.addresses import host_and_port
from curfew.rpc.collector import calm_collector
from curfew.rpc.server import ended_by_signals, on_signals
from curfew.telemetry.controller_metrics import MOST_TENANTS
from curfew.telemetry.logs import LogFormat, configure_logging
from curfew.telemetry.options import TelemetryError, add_telemetry_options, metrics_endpoint, tracing_to

log = logging.getLogger(__name__)

EXIT_CANNOT_START = 2
FIRST_WORKER_S = 5.0
"""How long a controller waits for a worker that it was told of before it is ready without one."""


def main(arguments: Sequence[str]) -> int:
    """Runs a controller until SIGTERM or SIGINT. Returns the exit code: 0 after a drain, 2 when it could not
    start.
    """
    options = _parser().parse_args(arguments)
    configure_logging(options.log_level, LogFormat(options.log_format))
    # It tells of every change in the policy's directory, be it to another file.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    try:
        policy = LivePolicy(lambda: load_policy(options.policy, os.environ, options.secrets))
    except PolicyError as error:
        return _cannot_start(str(error))
    log_doubts(options.policy, policy.current)
    try:
        recorder = _recorder(options)
    except OSError as error:
        return _cannot_start(f"nothing can be recorded to {options.record}: {error.strerror}")
    except ImportError as error:
        return _cannot_start(f"--record-format: {error}")
    try:
        security = read_security(options)
    except (OSError, ValueError) as error:
        return _cannot_start(str(error))
    calm_collector()
    return asyncio.run(_serve(policy, recorder, security, options))


async def _serve(
    policy: LivePolicy, recorder: Recorder | None, security: Security, options: argparse.Namespace
) -> int:
    async with AsyncExitStack() as at_end:
        return await _serve_until_told(policy, recorder, security, options, at_end)


async def _serve_until_told(
    policy: LivePolicy,
    recorder: Recorder | None,
    security: Security,
    options: argparse.Namespace,
    at_end: AsyncExitStack,
) -> int:
    stop = asyncio.Event()
    try:
        store = open_store(options.state, Timings().call_s) if options.state else None
    except ValueError as error:
        return _cannot_start(f"--state: {error}")
    try:
        tracing = await at_end.enter_async_context(
            tracing_to(options.otlp, "curfew-controller", options.trace_ratio, time.monotonic)
        )
    except TelemetryError as error:
        return _cannot_start(str(error))
    controller = Controller(
        policy,
        Sources(options.worker, options.workers_dns),
        time.monotonic,
        shadow=None if options.shadow is None else lambda: load_policy(options.shadow, None),
        recorder=recorder,
        recorded_labels=frozenset(options.record_label),
        store=store,
        store_optional=options.state_optional,
        telemetry=TelemetrySettings(
            options.metrics is not None, options.metrics_tenants, tracing, options.log_requests
        ),
        security=security,
    )
    try:
        metrics = await at_end.enter_async_context(
            metrics_endpoint(options.metrics, controller.readings.read)
        )
        bound = await controller.start(Addresses(options.listen, options.admin, options.http))
    except (OSError, StoreError, TelemetryError) as error:
        return _cannot_start(f"--state: {error}" if isinstance(error, StoreError) else str(error))
    with on_signals(stop.set):
        expected = options.worker or options.workers_dns
        if not await controller.had_worker(FIRST_WORKER_S if expected else 0.0):
            log.warning("no worker is available yet")
        also = "" if metrics is None else f" metrics={metrics}"
        if bound.http is not None:
            also += f" http={bound.http}"
        sys.stdout.write(f"curfew controller ready: listen={bound.listen} admin={bound.admin}{also}\n")
        sys.stdout.flush()
        watching = [asyncio.create_task(watch(options.policy, policy, secrets=options.secrets))]
        if controller.shadow is not None:
            watching.append(asyncio.create_task(watch(options.shadow, controller.shadow)))
        await stop.wait()
        log.info("draining")
    for each in watching:
        each.cancel()
    with ended_by_signals():
        await controller.stop(options.grace_s)
    return 0


def _recorder(options: argparse.Namespace) -> Recorder | None:
    if options.record is None:
        return None
    form = RecordingFormat(options.record_format)
    return Recorder(options.record, time.monotonic, time.time, form=form)


def _cannot_start(why: str) -> int:
    sys.stderr.write(f"curfew controller: {why}\n")
    return EXIT_CANNOT_START


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curfew controller", description="Holds each tenant's requests to what its policy promises."
    )
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="the policy file (YAML)")
    parser.add_argument(
        "--secrets", type=Path, metavar="DIR", help="where the files are that hold API keys (none)"
    )
    parser.add_argument(
        "--shadow",
        type=Path,
        metavar="FILE",
        help="a second policy, which decides beside the first without acting; `curfew top` shows what it "
        "would do otherwise (none)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="record requests there without their content, as `curfew policy simulate` reads them (nowhere)",
    )
    parser.add_argument(
        "--record-format",
        choices=[form.value for form in RecordingFormat],
        default=RecordingFormat.CSV.value,
        help="of complete files; parquet needs pyarrow (%(default)s)",
    )
    parser.add_argument(
        "--record-label",
        action="append",
        default=[],
        metavar="NAME",
        help="record the value of this label too; may be given several times",
    )
    parser.add_argument(
        "--worker",
        type=host_and_port,
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a worker; may be given several times. Workers may also announce themselves at --admin",
    )
    parser.add_argument(
        "--workers-dns",
        type=_name,
        metavar="NAME:PORT",
        help="a name in DNS whose addresses are workers, such as a headless service (none)",
    )
    parser.add_argument(
        "--listen",
        type=host_and_port,
        default="127.0.0.1:7200",
        metavar="HOST:PORT",
        help="for callers (%(default)s)",
    )
    parser.add_argument(
        "--admin",
        type=host_and_port,
        default="127.0.0.1:7201",
        metavar="HOST:PORT",
        help="for operators (%(default)s)",
    )
    parser.add_argument(
        "--http",
        type=host_and_port,
        metavar="HOST:PORT",
        help="for callers who speak OpenAI's API over HTTP (no such door)",
    )
    parser.add_argument(
        "--grace-s",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="time that running requests have to end at SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(%(default)s)"
    )
    parser.add_argument(
        "--state",
        metavar="URL",
        help="the store shared with other controllers: redis://, rediss://, unix://, redis+sentinel:// or "
        "redis+cluster:// (in memory, for one controller)",
    )
    parser.add_argument(
        "--state-optional", action="store_true", help="start even when the store cannot be reached"
    )
    add_security_options(parser)
    telemetry = add_telemetry_options(parser)
    telemetry.add_argument(
        "--log-requests",
        action="store_true",
        help="log a line for each request that is over: what it was granted and what came of it, no text",
    )
    telemetry.add_argument(
        "--metrics-tenants",
        type=positive,
        default=MOST_TENANTS,
        metavar="N",
        help="tenants that have metrics of their own, the policy's first; the rest is `other` (%(default)s)",
    )
    return parser


def _name(text: str) -> tuple[str, int]:
    name, _, port = host_and_port(text).rpartition(":")
    return name, int(port)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds
