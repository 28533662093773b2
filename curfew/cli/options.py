"""What the commands that ask have in common: the options, and what becomes of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from curfew.client import Mode, Options, Tls
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


def key_of(tenant: str | None, key: str | None) -> str:
    """The key to call with. Raises typer.BadParameter."""
    if tenant is not None:
        return f"demo-{tenant}"
    if key is None:
        raise typer.BadParameter("--tenant, --key or CURFEW_KEY is needed")
    return key


def tls_of(
    use: bool, ca: Path | None, cert: Path | None, cert_key: Path | None, server_name: str
) -> Tls | None:
    """How to encrypt, if at all. Raises typer.BadParameter."""
    if not (use or ca or cert or cert_key or server_name):
        return None
    try:
        return Tls(ca=ca, cert=cert, cert_key=cert_key, server_name=server_name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def wishes(
    system: str = "",
    deadline: float | None = None,
    think: bool | None = None,
    max_reasoning: int | None = None,
    max_answer: int | None = None,
    labels: list[str] | None = None,
    json_schema: Path | None = None,
) -> Options:
    """The options of a request. Raises typer.BadParameter."""
    options = Options()
    if system:
        options["system"] = system
    if deadline is not None:
        options["deadline_s"] = deadline
    if think is not None:
        options["mode"] = MODES[think]
    if max_reasoning is not None:
        options["max_reasoning_tokens"] = max_reasoning
    if max_answer is not None:
        options["max_answer_tokens"] = max_answer
    if labels:
        if not all("=" in label for label in labels):
            raise typer.BadParameter("a label is NAME=VALUE")
        options["labels"] = dict(label.split("=", 1) for label in labels)
    if json_schema is not None:
        options["json_schema"] = _schema(json_schema)
    return options


def _schema(path: Path) -> dict[str, object]:
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (NotAnObjectError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None
