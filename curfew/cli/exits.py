"""How a command ends when its request is not answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from curfew.client import Code, CurfewError

_STATUSES = {
    Code.INVALID_ARGUMENT: 2,
    Code.FAILED_PRECONDITION: 3,
    Code.UNAUTHENTICATED: 4,
    Code.RESOURCE_EXHAUSTED: 5,
    Code.UNAVAILABLE: 6,
    Code.DEADLINE_EXCEEDED: 7,
}
EXITS = (
    "Exits with 0 when answered, 2 for a wrong request or command line, 3 when the policy refuses, 4 for an "
    "unknown key, 5 when the service is full, 6 when nobody is there, 7 when the time is up, 130 after "
    "Ctrl-C, and 1 for anything else."
)


@contextmanager
def ending(command: str) -> Iterator[None]:
    """Turns a failed request into a line on standard error and an exit status."""
    try:
        yield
    except CurfewError as error:
        print(f"curfew {command}: {error}", file=sys.stderr)
        raise typer.Exit(_STATUSES.get(error.code, 1)) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
