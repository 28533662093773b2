"""The `curfew` command."""

from curfew.cli.main import main

__all__ = ["main"]
