"""The workbench's command line: `curfew policy`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from controller.policy.alerts import rules_text
from controller.policy.case import DEFAULT_INPUT_TOKENS, Case
from controller.policy.check import as_json, as_text, check
from controller.policy.diff import as_text as changes_text
from controller.policy.diff import differences
from controller.policy.document import PolicyError
from controller.policy.explain import explain
from controller.policy.loading import load_policy
from controller.policy.reference import reference_text, schema_text
from controller.policy.schema import did_you_mean
from controller.policy.units import parse_count
from controller.simulation.command import DEFAULT_SPEED, add_simulate
from controller.simulation.speed import PRESETS, SpeedError, find_speed
from curfew.telemetry.controller_metrics import MOST_TENANTS

EXIT_TROUBLE = 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _check(options: argparse.Namespace) -> int:
    environ = os.environ if options.keys or options.secrets is not None else None
    case = None
    if options.speed is not None:
        try:
            case = _case(options, {})
        except SpeedError as error:
            return _trouble(str(error))
    reports = [check(file, environ, options.secrets, case) for file in options.files]
    sys.stdout.write(as_json(reports) if options.json else as_text(reports))
    return max(report.exit_code(options.strict) for report in reports)


def _explain(options: argparse.Namespace) -> int:
    try:
        policy = load_policy(options.file, None)
        case = _case(options, dict(options.label))
    except (PolicyError, SpeedError) as error:
        return _trouble(str(error))
    tenant = policy.tenants.get(options.tenant)
    if tenant is None:
        near = did_you_mean(options.tenant, policy.tenants)
        return _trouble(f"{options.file}: {options.tenant!r} is not a tenant{near}")
    sys.stdout.write(explain(tenant, case))
    return 0


def _case(options: argparse.Namespace, labels: Mapping[str, str]) -> Case:
    """The request that the options describe. Raises SpeedError."""
    return Case(labels, options.input_tokens, options.load, find_speed(options.speed or DEFAULT_SPEED))


def _trouble(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return EXIT_TROUBLE


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=VALUE")
    return name, value


def _number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = parse_count(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is too few; at least {least}")
        return number

    return parse


def _schema(options: argparse.Namespace) -> int:
    sys.stdout.write(schema_text())
    return 0


def _reference(options: argparse.Namespace) -> int:
    sys.stdout.write(reference_text())
    return 0


def _alerts(options: argparse.Namespace) -> int:
    try:
        policy = load_policy(options.file, None)
    except PolicyError as error:
        return _trouble(str(error))
    sys.stdout.write(rules_text(policy, options.runbooks, options.metrics_tenants))
    left = len(policy.tenants) - options.metrics_tenants
    if left > 0:
        sys.stderr.write(f"{left} tenants have no metrics of their own and so no alerts: --metrics-tenants\n")
    return 0


def _diff(options: argparse.Namespace) -> int:
    try:
        before, after = (load_policy(file, None) for file in (options.before, options.after))
    except PolicyError as error:
        return _trouble(str(error))
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
    command.add_argument(
        "--secrets", type=Path, metavar="DIR", help="look also for the API keys that files of DIR hold"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_case(command, "default: whether promises can be kept is not looked at")
    command.set_defaults(run=_check)

    command = commands.add_parser(
        "explain",
        help="tell how a request would be planned, and why",
        description="Tells which rule a request falls under, how a controller that has just started would "
        "plan it, why, and what would have to change for more thinking. "
        "Exit code: 0, or 2 when a file cannot be used.",
    )
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--tenant", required=True, metavar="NAME")
    command.add_argument(
        "--label",
        action="append",
        default=[],
        type=_label,
        metavar="LABEL=VALUE",
        help="a label that the request carries; may be given several times",
    )
    _add_case(command, f"default: {DEFAULT_SPEED}")
    command.set_defaults(run=_explain)

    command = commands.add_parser(
        "diff",
        help="tell what changes for whom between two policy files",
        description="Tells what changes for whom, in effect and not in text. "
        "Exit code: 0 when nothing does, 1 when something does, 2 when a file cannot be used.",
    )
    command.add_argument("before", type=Path, metavar="A")
    command.add_argument("after", type=Path, metavar="B")
    command.set_defaults(run=_diff)

    command = commands.add_parser(
        "alerts",
        help="print Prometheus rules that watch the tenants' objectives",
        description="Prints a Prometheus rules file: alerts on the rate at which each tenant's error budget "
        "burns, and on what else an operator should know. Exit code: 0, or 2 when the file cannot be used.",
    )
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument(
        "--runbooks",
        default="docs/operations.md",
        metavar="URL",
        help="the page with a section for each alert (%(default)s)",
    )
    command.add_argument(
        "--metrics-tenants",
        type=_number(1),
        default=MOST_TENANTS,
        metavar="N",
        help="tenants that have metrics of their own, as the controller was told (%(default)s)",
    )
    command.set_defaults(run=_alerts)

    add_simulate(commands)

    command = commands.add_parser("schema", help="print the file's JSON Schema, for editors")
    command.set_defaults(run=_schema)

    command = commands.add_parser("reference", help="print the reference of the file's keys, in Markdown")
    command.set_defaults(run=_reference)
    return parser


def _add_case(command: argparse.ArgumentParser, without_speed: str) -> None:
    command.add_argument(
        "--speed",
        metavar="FILE",
        help="the worker's speed: a file that `curfew policy speed` wrote, or one of "
        f"{', '.join(PRESETS)}; {without_speed}",
    )
    command.add_argument(
        "--input-tokens",
        type=_number(1),
        default=DEFAULT_INPUT_TOKENS,
        metavar="N",
        help="of the request that is planned (%(default)s)",
    )
    command.add_argument(
        "--load", type=_number(0), default=0, metavar="N", help="requests running beside it (%(default)s)"
    )
