"""`curfew ask`: one question, streamed."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from curfew.cli import options as cli
from curfew.cli.exits import ending
from curfew.cli.screen import show
from curfew.client import Adjustment, Client, Completion, CurfewError, Delta, Event, Plan, Stream

_NAMES: dict[type[Event], str] = {
    Plan: "plan",
    Delta: "delta",
    Adjustment: "adjustment",
    Completion: "completion",
}


def ask(
    question: cli.Question,
    tenant: cli.Tenant = None,
    key: cli.Key = None,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    system: cli.System = "",
    deadline: cli.Deadline = None,
    think: cli.Think = None,
    budget: cli.MaxReasoning = None,
    max_answer: cli.MaxAnswer = None,
    label: cli.Labels = None,
    json_schema: cli.JsonSchema = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON, as it comes.")
    ] = False,
    tls: cli.UseTls = False,
    ca: cli.Ca = None,
    cert: cli.Cert = None,
    cert_key: cli.CertKey = None,
    server_name: cli.ServerName = "",
) -> None:
    """Ask one question and stream what comes.

    On a terminal: the plan, the reasoning dimmed, a countdown to its curfew, the answer, and what was kept.
    Where standard output is a pipe or a file, the answer alone goes there, everything else to standard error.

    With --json a line of standard output is one event: {"plan": …}, {"delta": …}, {"adjustment": …} or
    {"completion": …}, in the JSON form of protos/curfew/v1; the last may be {"error": …}.
    """
    options = cli.wishes(system, deadline, think, budget, max_answer, label, json_schema)
    api_key, security = cli.key_of(tenant, key), cli.tls_of(tls, ca, cert, cert_key, server_name)
    text = sys.stdin.read() if question == "-" else question
    with (
        ending("ask"),
        Client(address.split(","), key=api_key, tls=security) as client,
        client.generate(text, **options) as stream,
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
            content = MessageToDict(
                event.raw, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            print(json.dumps({_NAMES[type(event)]: content}, ensure_ascii=False), flush=True)
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
