"""What is wrong with a policy file, for people, editors and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from controller.policy.case import Case
from controller.policy.document import PolicyError, Problem, UnreadableError
from controller.policy.feasibility import infeasible
from controller.policy.loading import load_policy
from controller.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Report:
    """One file's. policy: None with errors; warnings are found once there are none. readable: whether its
    text could be had.
    """

    file: FilePath
    policy: Policy | None
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    readable: bool = True

    def exit_code(self, strict: bool) -> int:
        """0 when the file can be used, 1 when it cannot (strict: also with warnings), 2 when it cannot be
        read.
        """
        if not self.readable:
            return 2
        return 1 if self.errors or (strict and self.warnings) else 0


def check(
    file: FilePath,
    environ: Mapping[str, str] | None,
    secrets: FilePath | None = None,
    case: Case | None = None,
) -> Report:
    """Loads a file for what there is to say about it.

    environ, secrets: where API keys are looked for, if they are. case: a request whose promises must be
    possible to keep, whatever its labels.
    """
    try:
        policy = load_policy(file, environ, secrets)
    except PolicyError as error:
        return Report(file, None, error.problems, readable=not isinstance(error, UnreadableError))
    found = [*policy.warnings, *(infeasible(policy, case) if case is not None else ())]
    warnings = sorted(found, key=lambda w: (w.mark.line, w.mark.column, w.message))
    return Report(file, policy, warnings=tuple(warnings))


def as_text(reports: Sequence[Report]) -> str:
    """A line for each problem, in the form of compilers, which editors follow, and one for each file."""
    lines = []
    for report in reports:
        for kind, problems in (("error", report.errors), ("warning", report.warnings)):
            lines += [f"{report.file}:{p.mark.line}:{p.mark.column}: {kind}: {p.message}" for p in problems]
        if report.policy is not None:
            lines.append(f"{report.file}: can be used: {_summary(report.policy)}")
        else:
            lines.append(f"{report.file}: cannot be used: {_counted(len(report.errors), 'error')}")
    return "".join(f"{line}\n" for line in lines)


def as_json(reports: Sequence[Report]) -> str:
    """A list of files with their problems."""
    told = [
        {
            "file": str(report.file),
            "usable": report.policy is not None,
            "version": report.policy.version if report.policy else None,
            "problems": [
                {"line": p.mark.line, "column": p.mark.column, "severity": kind, "message": p.message}
                for kind, problems in (("error", report.errors), ("warning", report.warnings))
                for p in problems
            ],
        }
        for report in reports
    ]
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def _summary(policy: Policy) -> str:
    rules = sum(len(tenant.rules) for tenant in policy.tenants.values())
    return f"{_counted(len(policy.tenants), 'tenant')}, {_counted(rules, 'rule')}, version {policy.version}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
