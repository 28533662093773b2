"""What a service says when the libraries that it needs are not installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

EXIT_CANNOT_START = 2


@contextlib.contextmanager
def needing(service: str) -> Iterator[None]:
    """Around a service's imports: a library that is not there ends the process with a line that tells how to
    install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(service):
            raise  # a fault of ours
        end_without(service, service, error.name)


def end_without(command: str, extra: str, library: str) -> NoReturn:
    """Ends the process with that line. extra: that brings the library."""
    sys.stderr.write(f"curfew {command}: needs {library}: pip install 'curfew[{extra}]'\n")
    raise SystemExit(EXIT_CANNOT_START)
