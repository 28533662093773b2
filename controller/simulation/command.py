"""`curfew policy simulate` and `curfew policy speed`."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from controller.options import positive
from controller.policy import Policy, PolicyError, load_policy
from controller.simulation.html import report
from controller.simulation.judge import judge_of
from controller.simulation.mapping import MappingError, Share, mapped
from controller.simulation.recording import record_speed
from controller.simulation.requests import Request, prepare
from controller.simulation.speed import PRESETS, SpeedError, WorkerModel, find_speed
from controller.simulation.summary import Summary, as_values, summaries
from controller.simulation.table import COLUMNS, KEPT, Told, groups
from controller.simulation.trace import Trace, TraceError, read_trace
from controller.simulation.world import Run, simulate

DEFAULT_SPEED = "9b-h200"
EXIT_TROUBLE = 2
LEAST_WIDTH = 110
"""Of the table: in a narrower terminal its lines wrap, rather than its cells."""


def run_simulate(options: argparse.Namespace) -> int:
    """Tries one policy, or two, on a trace. Exit code: 0, or 2 when a file cannot be used."""
    try:
        files = [options.file, *([options.against] if options.against is not None else [])]
        policies = [load_policy(file, None) for file in files]
        model = find_speed(options.speed)
        trace = read_trace(options.trace)
        if options.minutes is not None:
            trace = trace.between(0, 60 * options.minutes)
        trace = trace.scaled(options.time_scale, options.length_scale)
        requests = _requests(trace, policies, files, options.map, options.seed, model)
    except (PolicyError, SpeedError, TraceError, MappingError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_TROUBLE
    began_s = time.perf_counter()
    runs = _simulate(dict(zip(_names(files), policies, strict=True)), requests, model, options)
    took_s = time.perf_counter() - began_s
    told = {name: summaries(run) for name, run in runs.items()}
    sys.stderr.write(
        f"{len(requests):,} requests in {_minutes(trace)} on {options.workers} × {model.name}, "
        f"simulated in {took_s:.1f} s\n"
    )
    if options.json:
        sys.stdout.write(json.dumps(_as_json(options, model, trace, runs, told)) + "\n")
    else:
        console = _console(sys.stdout)
        console.width = max(console.width, LEAST_WIDTH)
        console.print(_table(told, runs))
    if options.html is not None:
        about = (
            f"{trace.name}: {len(requests):,} requests in {_minutes(trace)}; "
            f"{options.workers} × {model.name} ({model.source}); seed {options.seed}"
        )
        try:
            options.html.write_text(report(runs, about))
        except OSError as error:
            sys.stderr.write(f"{options.html}: cannot be written: {error.strerror}\n")
            return EXIT_TROUBLE
        sys.stderr.write(f"wrote {options.html}\n")
    return 0


def run_speed(options: argparse.Namespace) -> int:
    """Writes the speed file of a running worker. Exit code: 0, or 2 when it cannot be reached."""
    try:
        sys.stdout.write(asyncio.run(record_speed(options.worker)))
    except grpc.aio.AioRpcError as error:
        sys.stderr.write(f"{options.worker}: {error.code().name}: {error.details()}\n")
        return EXIT_TROUBLE
    except SpeedError as error:
        sys.stderr.write(f"{options.worker}: {error}\n")
        return EXIT_TROUBLE
    return 0


def _requests(
    trace: Trace,
    policies: Sequence[Policy],
    files: Sequence[Path],
    mappings: Sequence[Share],
    seed: int,
    model: WorkerModel,
) -> list[Request]:
    """Requests of tenants that every policy has. Raises MappingError."""
    if not trace.arrivals:
        raise MappingError(f"{trace.name}: nothing arrives in the time that is simulated")
    for policy, file in zip(policies[1:], files[1:], strict=True):
        mapped(mappings, trace.tenants, policy.tenants, str(file))
    tenant_of = mapped(mappings, trace.tenants, policies[0].tenants, str(files[0]))
    return prepare(trace, tenant_of, seed, model.engine.boundary_tokens)


def _simulate(
    policies: Mapping[str, Policy],
    requests: Sequence[Request],
    model: WorkerModel,
    options: argparse.Namespace,
) -> dict[str, Run]:
    end_s = requests[-1].arrival.arrival_s
    judge = judge_of(list(policies.values()), requests)
    runs = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = _console(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(escape(name), total=end_s) for name in policies}
        for name, policy in policies.items():

            def advance(now_s: float, task: TaskID = tasks[name]) -> None:
                progress.update(task, completed=min(now_s, end_s))

            runs[name] = simulate(
                policy,
                requests,
                model,
                workers=options.workers,
                judge=judge,
                seed=options.seed,
                progress=advance,
            )
            advance(end_s)
    return runs


def _names(files: Sequence[Path]) -> list[str]:
    """Short names that differ."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    texts = [str(file) for file in files]
    return texts if len(set(texts)) == len(texts) else [f"{text} ({n + 1})" for n, text in enumerate(texts)]


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False)


# What is printed.


def _table(told: Told, runs: Mapping[str, Run]) -> Table:
    """A row for each tenant and policy, and for all tenants together."""
    several = len(told) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("tenant")
    if several:
        table.add_column("policy")
    for name, _ in COLUMNS:
        table.add_column(name, justify="right")
    for tenant, by_policy in groups(told, runs):
        for index, (policy, summary) in enumerate(by_policy.items()):
            cells = [
                f"[red]{cell(summary)}[/]" if name == KEPT and summary.short else cell(summary)
                for name, cell in COLUMNS
            ]
            table.add_row(tenant if index == 0 else "", *([escape(policy)] if several else []), *cells)
    return table


def _as_json(
    options: argparse.Namespace,
    model: WorkerModel,
    trace: Trace,
    runs: Mapping[str, Run],
    told: Told,
) -> object:
    return {
        "trace": trace.name,
        "duration_s": round(trace.duration_s, 3),
        "worker": model.name,
        "workers": options.workers,
        "seed": options.seed,
        "policies": [
            {
                "file": name,
                "version": run.policy.version,
                "all": as_values(Summary.of(run.records)),
                "tenants": {tenant: as_values(summary) for tenant, summary in tenants.items()},
            }
            for (name, run), tenants in zip(runs.items(), told.values(), strict=True)
        ],
    }


def _minutes(trace: Trace) -> str:
    return f"{trace.duration_s / 60:.3g} min"


# Options.


def add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the two commands to those of `curfew policy`."""
    command = commands.add_parser(
        "simulate",
        help="try a policy on recorded traffic",
        description="Has the planner serve recorded traffic with simulated workers, and tells what comes of "
        "each tenant's promises. Exit code: 0, or 2 when a file cannot be used.",
    )
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="the policy file")
    add("--trace", type=Path, required=True, metavar="TRACE", help="the traffic; see docs/simulate.md")
    add("--against", type=Path, metavar="OTHER", help="another policy file to compare with")
    add(
        "--speed",
        default=DEFAULT_SPEED,
        metavar="FILE",
        help=f"of a worker: {', '.join(PRESETS)}, or a file from `curfew policy speed` (%(default)s)",
    )
    add("--workers", type=positive, default=1, metavar="N", help="how many (%(default)s)")
    add(
        "--map",
        action="append",
        default=[],
        type=_mapping,
        metavar="PATTERN=TENANT",
        help="whose the requests of the trace's tenants are, such as 'client-*=support' or, by shares, "
        "'*=support:3,analyst:1'; may be given several times, the first that matches counts; "
        "by default, names are the same",
    )
    add("--minutes", type=_factor, metavar="M", help="only the first so many of the trace")
    add(
        "--time-scale",
        type=_factor,
        default=1.0,
        metavar="X",
        help="multiplies the times of arrival: 0.5 is twice the load",
    )
    add("--length-scale", type=_factor, default=1.0, metavar="X", help="multiplies all lengths")
    add("--seed", type=int, default=0, metavar="N", help="of all that is left to chance (%(default)s)")
    add("--html", type=Path, metavar="OUT", help="also write a report with plots")
    add("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_simulate)

    command = commands.add_parser(
        "speed",
        help="measure a running worker for simulate, check and explain",
        description="Asks a running worker what it measured of itself, and has it answer some questions to "
        "see how its steps vary. Prints a speed file. Exit code: 0, or 2 when it cannot be reached.",
    )
    command.add_argument("worker", metavar="HOST:PORT")
    command.set_defaults(run=run_speed)


def _mapping(text: str) -> Share:
    try:
        return Share.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _factor(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
