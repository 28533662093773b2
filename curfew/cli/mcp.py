"""`curfew mcp`: reasoning within a deadline as a tool for agents."""

from __future__ import annotations

import asyncio
import sys
from enum import Enum
from typing import Annotated

import typer

from curfew.cli import options as cli
from curfew.cli.exits import ending
from curfew.client import AsyncClient, Tls
from curfew.rpc.addresses import is_loopback


class Transport(Enum):
    """How agents connect."""

    STDIO = "stdio"
    HTTP = "http"


@cli.made_by(tls=cli.tls_of)
def mcp(
    *,
    tenant: cli.Tenant = None,
    key: cli.Key = None,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    transport: Annotated[Transport, typer.Option(help="How agents connect.")] = Transport.STDIO,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where they do with --transport http.")
    ] = "127.0.0.1:7290",
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let others reach --listen; something else must encrypt."),
    ] = False,
    tls: Tls | None,
) -> None:
    """Offer agents a tool that thinks no longer than they can wait (Model Context Protocol).

    With --transport http, an agent that sends `authorization: Bearer KEY` asks in the name of that key; the
    server's own is then only for agents of this machine.
    """
    over_http = transport is Transport.HTTP
    own = cli.key_if_given(tenant, key) if over_http else cli.key_of(tenant, key)
    if over_http and not is_loopback(listen):
        elsewhere = f"--listen {listen} can be reached from elsewhere"
        if own is not None:
            raise typer.BadParameter(f"{elsewhere}: leave out the key, so that agents bring theirs")
        if not insecure:
            raise typer.BadParameter(f"{elsewhere}, with keys and questions in clear: give --insecure")
    try:
        from curfew.mcp.clients import Clients
        from curfew.mcp.server import PATH, serve_http, serve_stdio
    except ModuleNotFoundError as error:
        print(f"curfew mcp: needs {error.name}: pip install 'curfew[mcp]'", file=sys.stderr)
        raise typer.Exit(2) from None

    with ending("mcp"):
        clients = Clients(lambda each: AsyncClient(cli.hosts(address), key=each, tls=tls), own)
        if over_http:
            asyncio.run(
                serve_http(clients, listen, lambda bound: print(f"ready: http://{bound}{PATH}", flush=True))
            )
        else:
            asyncio.run(serve_stdio(clients))
