"""`curfew conformance`: whether a server keeps thinking budgets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from curfew.cli import options as cli
from curfew.client import Tls
from curfew.conformance import (
    CHECKS,
    CallerTarget,
    HttpTarget,
    RefusedError,
    Result,
    Suite,
    Target,
    TargetError,
    WorkerTarget,
    as_dict,
    table,
)
from curfew.dialects import DIALECTS

QUESTION = "What is 12 + 37 + 45 + 10 + 11 + 82 + 99?"


@cli.made_by(tls=cli.tls_of)
def conformance(
    *,
    target: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="http://HOST:PORT/v1 (OpenAI's API), grpc://HOST:PORT (a controller), worker://HOST:PORT.",
        ),
    ],
    tenant: cli.Tenant = None,
    key: cli.Key = None,
    model: Annotated[
        str | None, typer.Option(help="With http: the model. Default: the first listed.")
    ] = None,
    dialect: Annotated[
        str, typer.Option(help=f"With http: how a budget is asked for. One of {', '.join(DIALECTS)}.")
    ] = "curfew",
    question: Annotated[
        str, typer.Option(help="One that the model reasons about for a while, and answers shortly.")
    ] = QUESTION,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, where there are many.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    tls: Tls | None,
) -> None:
    """Check point by point whether a server keeps thinking budgets.

    Each check is a few small requests. It passes, fails, does not apply, or cannot tell; what was seen is
    told.

    --tls and what belongs to it are for grpc:// and worker://; https:// trusts whom this machine does.

    Exits with 0 when no check failed, 1 when one did, 6 when the server is not there.
    """
    if dialect not in DIALECTS:
        raise typer.BadParameter(f"{dialect!r} is none of {', '.join(DIALECTS)}", param_hint="--dialect")
    console = Console(stderr=as_json, highlight=False)

    def note(result: Result) -> None:
        if console.is_terminal:
            console.print(f"{result.name}: {result.verdict.value}", style="dim", markup=False)

    try:
        results = asyncio.run(_run(target, tenant, key, tls, model, dialect, question, concurrency, note))
    except (TargetError, RefusedError, OSError) as error:
        print(f"curfew conformance: {error}", file=sys.stderr)
        raise typer.Exit(6) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except ImportError as error:
        print(f"curfew conformance: needs {error.name}: pip install {error.name}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    content = as_dict(results, target)
    if as_json:
        print(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        console.print(table(results, target))
    if not content["passed"]:
        raise typer.Exit(1)


async def _run(
    url: str,
    tenant: str | None,
    key: str | None,
    tls: Tls | None,
    model: str | None,
    dialect: str,
    question: str,
    concurrency: int,
    note: Callable[[Result], object],
) -> list[Result]:
    async def check(target: Target) -> list[Result]:
        return await Suite(target, question, concurrency).run(CHECKS, note)

    scheme, _, rest = url.partition("://")
    if tls is not None and scheme not in ("grpc", "worker"):
        raise typer.BadParameter("--tls is for grpc:// and worker://")
    match scheme:
        case "http" | "https":
            async with HttpTarget(
                url, DIALECTS[dialect], model=model, key=cli.key_if_given(tenant, key)
            ) as http:
                return await check(http)
        case "grpc":
            async with CallerTarget(rest, cli.key_of(tenant, key), tls) as caller:
                return await check(caller)
        case "worker":
            async with WorkerTarget(rest, tls) as worker:
                return await check(worker)
    raise typer.BadParameter(f"{url!r} is no http, grpc or worker URL", param_hint="--target")
