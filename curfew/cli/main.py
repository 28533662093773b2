"""The `curfew` command: start the services, ask them something."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from curfew.cli.ask import ask
from curfew.cli.bench import bench
from curfew.cli.chat import chat
from curfew.cli.conformance import conformance
from curfew.cli.exits import EXITS
from curfew.cli.health import health
from curfew.cli.mcp import mcp
from curfew.cli.plan import plan
from curfew.cli.services import PASS_ON, controller, policy, serve, worker
from curfew.cli.top import top


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"curfew {version('curfew')}")
        raise typer.Exit


app = typer.Typer(
    name="curfew",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def curfew(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print it and end.")
    ] = False,
) -> None:
    """The best answer that fits the deadline."""


app.command(epilog=EXITS)(ask)
app.command(epilog=EXITS)(chat)
app.command(epilog=EXITS)(plan)
app.command(epilog=EXITS)(bench)
app.command()(conformance)
app.command()(serve)
app.command()(mcp)
app.command()(top)
app.command()(health)
app.command(context_settings=PASS_ON)(worker)
app.command(context_settings=PASS_ON)(controller)
app.command(context_settings=PASS_ON)(policy)


def main() -> None:
    """Runs the command."""
    app()
