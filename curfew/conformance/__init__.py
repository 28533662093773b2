"""Whether a server keeps thinking budgets: small checks, each with a verdict and its evidence."""

from curfew.conformance.http_target import HttpTarget
from curfew.conformance.report import as_dict, table
from curfew.conformance.rpc_targets import CallerTarget, WorkerTarget
from curfew.conformance.suite import CHECKS, Result, Suite, Verdict
from curfew.conformance.target import Ask, RefusedError, Seen, Target, TargetError

__all__ = [
    "CHECKS",
    "Ask",
    "CallerTarget",
    "HttpTarget",
    "RefusedError",
    "Result",
    "Seen",
    "Suite",
    "Target",
    "TargetError",
    "Verdict",
    "WorkerTarget",
    "as_dict",
    "table",
]
