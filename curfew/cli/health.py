"""`curfew health`: whether a service would take a request, for probes and scripts."""

from __future__ import annotations

import sys
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from curfew.cli import options as cli
from curfew.cli.exits import ending
from curfew.client import Tls
from curfew.client.connection import Connection

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING, _UNREACHABLE = 1, 2


@cli.made_by(tls=cli.tls_of)
def health(
    *,
    address: Annotated[str, typer.Argument(help="The service, HOST:PORT.")] = cli.DEFAULT_ADDRESS,
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="A part of it, such as curfew.v1.ReasoningService, or curfew.policy at a controller's "
            "--admin address. May be repeated: all must serve."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(parser=cli.duration, metavar="DURATION", help="When it is given up.")
    ] = "2s",  # type: ignore[assignment]  # it is parsed
    tls: Tls | None,
) -> None:
    """Tell whether a worker or controller serves, as grpc.health.v1 says. No key is needed.

    A controller serves while it has a worker, a worker from the end of its warm-up on; neither while it
    drains.

    Exits with 0 when it serves, 1 when it does not, 2 when nobody answers.
    """
    with ending("health"):
        connection = Connection(address, "", tls)
    serves = True
    with connection.open(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stub has it
        for name in service or [""]:
            where = f"{address} {name}".rstrip()
            try:
                status = check(health_pb2.HealthCheckRequest(service=name), timeout=timeout).status
                said = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    print(f"{where}: {error.code().name}: {error.details()}", file=sys.stderr)
                    raise typer.Exit(_UNREACHABLE) from None
                status, said = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, "SERVICE_UNKNOWN"
            serves &= status == _SERVING
            print(f"{where}: {said}")
    raise typer.Exit(0 if serves else _NOT_SERVING)
