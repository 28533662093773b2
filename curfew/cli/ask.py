"""`curfew ask`: one question, streamed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from curfew.cli import options as cli
from curfew.cli.as_json import as_dict
from curfew.cli.exits import ending
from curfew.cli.screen import show
from curfew.client import (
    Adjustment,
    Client,
    Completion,
    CurfewError,
    Delta,
    Event,
    Options,
    Plan,
    Stream,
    Tls,
)

_NAMES: dict[type[Event], str] = {
    Plan: "plan",
    Delta: "delta",
    Adjustment: "adjustment",
    Completion: "completion",
}


@cli.made_by(key=cli.key_of, options=cli.wishes, tls=cli.tls_of)
def ask(
    *,
    question: cli.Question,
    key: str,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    options: Options,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON, as it comes.")
    ] = False,
    tls: Tls | None,
) -> None:
    """Ask one question and stream what comes.

    On a terminal: the plan, the reasoning dimmed, a countdown to its curfew, the answer, and what was kept.
    Where standard output is a pipe or a file, the answer alone goes there, everything else to standard error.

    With --json a line of standard output is one event: {"plan": …}, {"delta": …}, {"adjustment": …} or
    {"completion": …}, in the JSON form of protos/curfew/v1; the last may be {"error": …}.
    """
    with (
        ending("ask"),
        Client(cli.hosts(address), key=key, tls=tls) as client,
        client.generate(cli.text_of(question), **options) as stream,
    ):
        if as_json:
            print_json(stream)
        elif quiet:
            for piece in stream.answer_text():
                print(piece, end="", flush=True)
            print()
        else:
            show(stream)


def print_json(stream: Stream) -> None:
    """Prints each event as a line; an error too, and raises it."""
    try:
        for event in stream:
            print(json.dumps({_NAMES[type(event)]: as_dict(event.raw)}, ensure_ascii=False), flush=True)
    except CurfewError as error:
        content = {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "retry_after_s": error.retry_after_s,
            "violations": [
                {"field": each.field, "description": each.description} for each in error.violations
            ],
        }
        print(json.dumps({"error": content}, ensure_ascii=False), flush=True)
        raise
