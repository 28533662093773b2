"""The `curfew` command: start the services, ask them something."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rich.console import Console

from curfew.cli.serve import serve_until_told
from curfew.client import Client, ask
from curfew.processes import ServiceError, command
from curfew.show import StreamView
from curfew.v1 import generation_pb2

DEFAULT_ADDRESS = "127.0.0.1:7200"
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="curfew",
    help="The best answer that fits the deadline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the demo's.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file. Default: the demo's.")] = None,
    listen: Annotated[str, typer.Option(help="The controller's address.")] = DEFAULT_ADDRESS,
    admin: Annotated[str, typer.Option(help="Its address for operators.")] = "127.0.0.1:7201",
) -> None:
    """Run a worker and a controller on this machine until Ctrl-C."""
    try:
        status = asyncio.run(
            serve_until_told(
                model or demo_directory() / "model", policy or demo_directory() / "policy.yaml", listen, admin
            )
        )
    except ServiceError as error:
        print(f"curfew serve: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command(context_settings=_PASS_ON)
def worker(context: typer.Context) -> None:
    """Run one worker (`curfew worker --help` tells its options)."""
    _become("worker", context.args)


@app.command(context_settings=_PASS_ON)
def controller(context: typer.Context) -> None:
    """Run one controller (`curfew controller --help` tells its options)."""
    _become("controller", context.args)


@app.command(context_settings=_PASS_ON)
def policy(context: typer.Context) -> None:
    """Check and explain policy files (`curfew policy --help` tells how)."""
    _become("controller.policy", context.args)


@app.command(name="ask")
def ask_command(
    question: Annotated[str, typer.Argument(help="What to ask. `-` reads it from standard input.")],
    tenant: Annotated[
        str | None, typer.Option(help="A tenant of the demo policy: its key is demo-TENANT.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="CURFEW_API_KEY", help="The tenant's API key.")] = None,
    address: Annotated[str, typer.Option(envvar="CURFEW_ADDRESS", help="The controller.")] = DEFAULT_ADDRESS,
    system: Annotated[str, typer.Option(help="A system text.")] = "",
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="A wish. Default: the plan decides.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print the answer alone.")] = False,
) -> None:
    """Ask one question and stream what comes."""
    if tenant is not None:
        key = f"demo-{tenant}"
    if key is None:
        raise typer.BadParameter("--tenant, --key or CURFEW_API_KEY is needed")
    if question == "-":
        question = sys.stdin.read()
    request = ask(question, system=system)
    if think is not None:
        request.wishes.mode = generation_pb2.MODE_THINK if think else generation_pb2.MODE_NO_THINK
    console = Console(quiet=quiet, highlight=False)

    async def stream(key: str) -> StreamView:
        view = StreamView(console)
        async with Client(address, key=key) as client:
            async for event in client.generate(request):
                view.show(event)
        return view

    try:
        view = asyncio.run(stream(key))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except grpc.aio.AioRpcError as error:
        print(f"curfew ask: {explain(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if quiet:
        print(view.answer)


def explain(error: grpc.aio.AioRpcError) -> str:
    """An RPC error in one line, with what its details add."""
    text = f"{error.code().name}: {error.details()}"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stub wants the synchronous Call
    for detail in status.details if status else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            delay = retry.retry_delay
            text += f" (try again in {delay.seconds + delay.nanos / 1e9:.1f} s)"
    return text


def demo_directory() -> Path:
    """Where the demo model and policy are: beside this package."""
    return Path(__file__).parents[2] / "demo"


def _become(module: str, arguments: list[str]) -> None:
    """Replaces this process, so that signals and the exit status are the service's own."""
    os.execv(sys.executable, command(module, arguments))


def main() -> None:
    """Runs the command."""
    app()
