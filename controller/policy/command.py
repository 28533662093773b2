"""The workbench's command line: `curfew policy`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from controller.policy.check import as_json, as_text, check
from controller.policy.diff import as_text as changes_text
from controller.policy.diff import differences
from controller.policy.document import PolicyError
from controller.policy.loading import load_policy
from controller.policy.reference import reference_text, schema_text

EXIT_TROUBLE = 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _check(options: argparse.Namespace) -> int:
    environ = os.environ if options.keys else None
    reports = [check(file, environ) for file in options.files]
    sys.stdout.write(as_json(reports) if options.json else as_text(reports))
    return max(report.exit_code(options.strict) for report in reports)


def _schema(options: argparse.Namespace) -> int:
    sys.stdout.write(schema_text())
    return 0


def _reference(options: argparse.Namespace) -> int:
    sys.stdout.write(reference_text())
    return 0


def _diff(options: argparse.Namespace) -> int:
    try:
        before, after = (load_policy(file, None) for file in (options.before, options.after))
    except PolicyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_TROUBLE
    changes = differences(before, after)
    sys.stdout.write(changes_text(changes))
    return 1 if changes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="curfew policy", description="Checks and explains policy files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "check",
        help="tell everything that is wrong with policy files",
        description="Tells everything that is wrong with policy files, and where. "
        "Exit code: 0 when they can be used, 1 when one cannot, 2 when one cannot be read.",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    command.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    command.add_argument(
        "--keys", action="store_true", help="look also whether the variables that hold API keys are set"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_check)

    command = commands.add_parser(
        "diff",
        help="tell what changes for whom between two policy files",
        description="Tells what changes for whom, in effect and not in text. "
        "Exit code: 0 when nothing does, 1 when something does, 2 when a file cannot be used.",
    )
    command.add_argument("before", type=Path, metavar="A")
    command.add_argument("after", type=Path, metavar="B")
    command.set_defaults(run=_diff)

    command = commands.add_parser("schema", help="print the file's JSON Schema, for editors")
    command.set_defaults(run=_schema)

    command = commands.add_parser("reference", help="print the reference of the file's keys, in Markdown")
    command.set_defaults(run=_reference)
    return parser
