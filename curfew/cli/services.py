"""The commands that run services: both together, or each as it is."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from curfew.cli.options import DEFAULT_ADDRESS
from curfew.cli.serve import serve_until_told
from curfew.processes import ServiceError, command
from curfew.rpc.extras import end_without

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Everything after the command's name is the service's own."""


def serve(
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the demo's.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file. Default: the demo's.")] = None,
    listen: Annotated[str, typer.Option(help="The controller's address.")] = DEFAULT_ADDRESS,
    admin: Annotated[str, typer.Option(help="Its address for operators.")] = "127.0.0.1:7201",
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Its address for callers over HTTP. Default: none."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let callers reach it from other machines, with nothing encrypted."),
    ] = False,
) -> None:
    """Run a worker and a controller on this machine until Ctrl-C."""
    try:
        status = asyncio.run(
            serve_until_told(
                model or demo_directory() / "model",
                policy or demo_directory() / "policy.yaml",
                listen,
                admin,
                http,
                insecure,
            )
        )
    except ServiceError as error:
        print(f"curfew serve: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(status)


def worker(context: typer.Context) -> None:
    """Run one worker (`curfew worker --help` tells its options)."""
    _become("worker", context.args)


def controller(context: typer.Context) -> None:
    """Run one controller (`curfew controller --help` tells its options)."""
    _become("controller", context.args)


def policy(context: typer.Context) -> None:
    """Check and explain policy files (`curfew policy --help` tells how)."""
    # Its package needs it before it can say so itself.
    if find_spec("ruamel") is None:
        end_without("policy", "controller", "ruamel.yaml")
    _become("controller.policy", context.args)


def demo_directory() -> Path:
    """Where the demo model and policy are: beside this package."""
    return Path(__file__).parents[2] / "demo"


def _become(module: str, arguments: list[str]) -> None:
    """Replaces this process, so that signals and the exit status are the service's own."""
    os.execv(sys.executable, command(module, arguments))
