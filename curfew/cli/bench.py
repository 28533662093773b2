"""`curfew bench`: load at a rate or from a trace, and what came of it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from curfew.cli import options as cli
from curfew.cli.exits import ending
from curfew.client import ONCE, AsyncClient, AsyncStream, Options, Tls
from curfew.load import Arrival, Report, poisson, question, read_trace, run
from curfew.load.arrivals import spread


@cli.made_by(tls=cli.tls_of)
def bench(
    *,
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="A tenant of the demo policy: its key is demo-TENANT. Repeatable."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CURFEW_KEY",
            metavar="[NAME=]KEY",
            help="A tenant's API key, with a name for the report. Repeatable.",
        ),
    ] = None,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second, at random times.")
    ] = None,
    duration: Annotated[
        float, typer.Option(parser=cli.duration, metavar="DURATION", help="For how long, with --rate.")
    ] = "10s",  # type: ignore[assignment]  # it is parsed
    input_tokens: Annotated[int, typer.Option(min=1, help="Length of the questions, with --rate.")] = 24,
    trace: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Recorded traffic (CSV).")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="How many times as fast as recorded.")] = 1.0,
    lengths: Annotated[
        float, typer.Option(min=0.0, help="What the trace's lengths are multiplied by.")
    ] = 1.0,
    limit: Annotated[
        float | None, typer.Option(parser=cli.duration, metavar="DURATION", help="Only its beginning.")
    ] = None,
    bytes_per_token: Annotated[float, typer.Option(min=0.1, help="Of the questions, in the model.")] = 1.0,
    deadline: cli.Deadline = None,
    timeout: Annotated[
        float, typer.Option(parser=cli.duration, metavar="DURATION", help="When a request is given up.")
    ] = "60s",  # type: ignore[assignment]  # it is parsed
    seed: Annotated[int, typer.Option(help="Of the times, the tenants and the questions.")] = 7,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON; the table goes to standard error.")
    ] = False,
    tls: Tls | None,
) -> None:
    """Put load on a controller and report what came: promises kept, latencies, refusals by reason.

    The loop is open: a request is sent when it is due, however many still run, and its latency is counted
    from that moment, so that a slow service cannot slow down its own measurement. What this machine sends
    late is told. No request is tried again.

    A trace is a CSV file with the columns arrival_s, tenant, input_tokens, reasoning_tokens and
    answer_tokens; the last two are the most that a request may use. Its tenants that no key was given for
    take turns with the keys. Ctrl-C ends the load and reports what came until then.
    """
    if (rate is None) == (trace is None):
        raise typer.BadParameter("one of --rate and --trace is needed")
    keys = _keys(tenant or [], key or [])
    random = Random(seed)
    with ending("bench"):
        if rate is not None:
            arrivals = poisson(rate, duration, list(keys), input_tokens, random)
        else:
            assert trace is not None
            arrivals = spread(read_trace(trace, speed=speed, lengths=lengths), list(keys))
        if limit is not None:
            arrivals = [arrival for arrival in arrivals if arrival.at_s < limit]
        wishes = cli.wishes(deadline=deadline)
        wishes["timeout_s"] = timeout

        def ask(arrival: Arrival) -> str:
            return question(arrival, bytes_per_token, random)

        console = Console(stderr=as_json, highlight=False)
        report, elapsed_s = asyncio.run(
            _measure(arrivals, ask, wishes, keys, cli.hosts(address), tls, console)
        )
    console.print(report.table(elapsed_s, len(arrivals)))
    if as_json:
        print(json.dumps(report.as_dict(elapsed_s)))


def _keys(tenants: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Keys by the names under which they are reported."""
    named = {tenant: f"demo-{tenant}" for tenant in tenants}
    for number, key in enumerate(keys, start=1):
        name, equals, value = key.partition("=")
        named[name if equals else f"key {number}"] = value if equals else key
    if not named:
        raise typer.BadParameter("--tenant, --key or CURFEW_KEY is needed")
    return named


async def _measure(
    arrivals: Sequence[Arrival],
    ask: Callable[[Arrival], str],
    wishes: Options,
    keys: Mapping[str, str],
    addresses: Sequence[str],
    tls: Tls | None,
    console: Console,
) -> tuple[Report, float]:
    """Runs the load. Returns the report and how long it took, in seconds."""
    report = Report()
    begun_s = time.monotonic()

    class Progress:
        def __rich__(self) -> Table:
            return report.table(time.monotonic() - begun_s, len(arrivals))

    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(AsyncClient(addresses, key=key, tls=tls, retry=ONCE))
            for name, key in keys.items()
        }

        def send(arrival: Arrival) -> AsyncStream:
            options = wishes.copy()
            if arrival.reasoning_tokens is not None:
                options["max_reasoning_tokens"] = arrival.reasoning_tokens
            if arrival.answer_tokens is not None:
                options["max_answer_tokens"] = arrival.answer_tokens
            return clients[arrival.tenant].generate(ask(arrival), **options)

        if console.is_terminal:
            stack.enter_context(Live(Progress(), console=console, transient=True, refresh_per_second=4))
        load = asyncio.create_task(run(arrivals, send, report.note, time.monotonic))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, load.cancel)
        await asyncio.wait([load])
        if not load.cancelled():
            load.result()
        return report, time.monotonic() - begun_s
