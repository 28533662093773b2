"""The `curfew` command: start the services, ask them something."""

from __future__ import annotations

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

app = typer.Typer(
    name="curfew",
    help="The best answer that fits the deadline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
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
