"""What commands have in common: the options, and what becomes of them."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from curfew.client import Effort, Mode, Options, Tls
from curfew.rpc.tools import NotAnObjectError, parse_object

DEFAULT_ADDRESS = "127.0.0.1:7200"

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s|m|h)?", re.ASCII)
MODES = {True: Mode.THINK, False: Mode.NO_THINK}
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


class BadDuration(typer.BadParameter):
    """A text is no duration."""


def duration(text: str) -> float:
    """Seconds, above 0, of a text such as 800ms, 1.5s, 2m or, in seconds, 3. Raises BadDuration."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if seconds <= 0:
        raise BadDuration(f"{text!r} is not a duration above 0, such as 800ms, 1.5s or 2m")
    return seconds


Question = Annotated[str, typer.Argument(help="What to ask. `-` reads it from standard input.")]
Tenant = Annotated[str | None, typer.Option(help="A tenant of the demo policy: its key is demo-TENANT.")]
Key = Annotated[str | None, typer.Option(envvar="CURFEW_KEY", help="The tenant's API key.")]
Address = Annotated[
    str,
    typer.Option(
        envvar="CURFEW_ADDRESS", help="The controller, HOST:PORT; of several, with commas, one that answers."
    ),
]
UseTls = Annotated[bool, typer.Option("--tls", help="Encrypt. Implied by the options below.")]
Ca = Annotated[
    Path | None,
    typer.Option(envvar="CURFEW_CA", exists=True, dir_okay=False, help="Certificates to trust (PEM)."),
]
Cert = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own certificate (PEM).")]
CertKey = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Its key (PEM).")]
ServerName = Annotated[
    str, typer.Option(help="The name in the other side's certificate, where it is not that of the address.")
]
System = Annotated[str, typer.Option(help="A system text.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        parser=duration, metavar="DURATION", help="A deadline tighter than the tenant's: 800ms, 2s."
    ),
]
Think = Annotated[bool | None, typer.Option("--think/--no-think", help="A wish. Default: the plan decides.")]
MaxReasoning = Annotated[
    int | None, typer.Option("--budget", min=0, help="At most so many reasoning tokens.")
]
MaxAnswer = Annotated[int | None, typer.Option("--max-answer", min=1, help="At most so many answer tokens.")]
MaxOutput = Annotated[
    int | None,
    typer.Option(
        "--max-output-tokens",
        min=1,
        help="At most so many tokens in all. The answer's are taken first: reasoning has what is left.",
    ),
]
EffortWord = Annotated[
    Literal["none", "minimal", "low", "medium", "high"] | None,
    typer.Option(
        "--effort", help="At most how much of the reasoning that the policy allows. Default: high, all of it."
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        "--json-schema", exists=True, dir_okay=False, help="A JSON Schema (file) that the answer must keep."
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="What rules of the policy match on. May be repeated."),
]


def made_by(**makers: Callable[..., object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with arguments that are each made from several options. makers: functions whose parameters
    are these options, by the argument that each returns.
    """

    def of(command: Callable[..., None]) -> Callable[..., None]:
        options = {name: inspect.signature(maker, eval_str=True).parameters for name, maker in makers.items()}
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, own in inspect.signature(command, eval_str=True).parameters.items()
            for parameter in (options[name].values() if name in options else [own])
        ]

        @functools.wraps(command)
        def run(**given: object) -> None:
            made = {
                name: maker(**{option: given.pop(option) for option in options[name]})
                for name, maker in makers.items()
            }
            command(**given, **made)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return of


def key_of(tenant: Tenant = None, key: Key = None) -> str:
    """The key to call with. Raises typer.BadParameter."""
    given = key_if_given(tenant, key)
    if given is None:
        raise typer.BadParameter("--tenant, --key or CURFEW_KEY is needed")
    return given


def key_if_given(tenant: str | None, key: str | None) -> str | None:
    """The key to call with, where one is not always needed."""
    return key if tenant is None else f"demo-{tenant}"


def tls_of(
    use: UseTls = False,
    ca: Ca = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    server_name: ServerName = "",
) -> Tls | None:
    """How to encrypt, if at all. Raises typer.BadParameter."""
    if not (use or ca or cert or cert_key or server_name):
        return None
    try:
        return Tls(ca=ca, cert=cert, cert_key=cert_key, server_name=server_name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def wishes(
    system: System = "",
    deadline: Deadline = None,
    think: Think = None,
    effort: EffortWord = None,
    max_reasoning: MaxReasoning = None,
    max_answer: MaxAnswer = None,
    max_output: MaxOutput = None,
    labels: Labels = None,
    json_schema: JsonSchema = None,
) -> Options:
    """The options of a request. Raises typer.BadParameter."""
    options = Options()
    if system:
        options["system"] = system
    if deadline is not None:
        options["deadline_s"] = deadline
    if think is not None:
        options["mode"] = MODES[think]
    if effort is not None:
        options["effort"] = Effort[effort.upper()]
    if max_reasoning is not None:
        options["max_reasoning_tokens"] = max_reasoning
    if max_answer is not None:
        options["max_answer_tokens"] = max_answer
    if max_output is not None:
        options["max_output_tokens"] = max_output
    if labels:
        if not all("=" in label for label in labels):
            raise typer.BadParameter("a label is NAME=VALUE")
        options["labels"] = dict(label.split("=", 1) for label in labels)
    if json_schema is not None:
        options["json_schema"] = _schema(json_schema)
    return options


def hosts(address: str) -> list[str]:
    """The addresses that --address names."""
    return [each.strip() for each in address.split(",")]


def text_of(question: str) -> str:
    """What is asked: the argument, or standard input for `-`."""
    return sys.stdin.read() if question == "-" else question


def _schema(path: Path) -> dict[str, object]:
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (NotAnObjectError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None
