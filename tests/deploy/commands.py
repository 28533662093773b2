"""Reads `curfew …` command lines with the real parsers, without running anything."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import typer

from curfew.cli.main import app

_SERVICES = {
    "worker": ("worker.service.command", "arguments"),
    "controller": ("controller.service.command", "_parser"),
    "policy": ("controller.policy.command", "_parser"),
}


class CommandError(Exception):
    """A command line that is refused, with what is said of it."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of `curfew WORDS`. Raises CommandError."""
    name, *rest = words
    said = io.StringIO()
    if name in _SERVICES:
        module, function = _SERVICES[name]
        parser: argparse.ArgumentParser = getattr(import_module(module), function)()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                return parser.parse_args(rest)
        except SystemExit as exit_:
            if exit_.code == 0:
                return argparse.Namespace()
            raise CommandError(f"curfew {' '.join(words)}: {said.getvalue()}") from None
    # Of click or of typer's own copy of it, by its version.
    group: Any = typer.main.get_command(app)
    command = group.commands.get(name)
    if command is None:
        raise CommandError(f"curfew {name}: there is no such command")
    # It looks whether files exist, which are on other machines.
    here = [re.sub(r"^(--\S+)=/.*", rf"\1={__file__}", word) for word in rest]
    try:
        return argparse.Namespace(**command.make_context(name, here).params)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise CommandError(f"curfew {' '.join(words)}: {error.format_message()}") from None


def addresses(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Where a service is told to listen: (option, host, port)."""
    for option in ("listen", "admin", "http", "metrics"):
        if (value := getattr(options, option, None)) is not None:
            host, _, port = str(value).rpartition(":")
            yield option, host, int(port)
