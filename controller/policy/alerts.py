"""Prometheus rules from a policy file: when a tenant's objective is in danger, and when the system is.

Objectives are watched by the rate at which their error budget burns, over two windows each, as Google's SRE
workbook advises (chapter 5, "Alerting on SLOs", method 6): the long window shows that it matters, the short
one that it still goes on. The error budget is what the share leaves: of `p95` 5 % of the answered requests
may miss an objective.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from controller.policy.model import Policy, TenantPolicy
from curfew.telemetry import controller_metrics as controller
from curfew.telemetry import worker_metrics as worker

PAGE, TICKET = "page", "ticket"
MOST_RATIO = 0.9
"""A share as low as p50 leaves so much budget that no ratio of misses burns it 14.4 times as fast as it may:
from this ratio on it counts as burning, however large the budget."""


@dataclass(frozen=True, slots=True)
class Burn:
    """So many times the speed at which the budget of 30 days would be used up exactly, over both windows."""

    factor: float
    long: str
    short: str


FAST = (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m"))
"""2 % of the budget in an hour, 5 % in six."""
SLOW = (Burn(3, "1d", "2h"), Burn(1, "3d", "6h"))
"""10 % in a day, or in three."""
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule. holds_for: how long its expression must be true. what: one line, which may name the
    labels and the value.
    """

    name: str
    expression: str
    severity: str
    what: str
    holds_for: str = "0m"
    tenant: str | None = None

    def rule(self, runbooks: str) -> dict[str, object]:
        """As Prometheus has it. runbooks: the address of the page that tells what to do."""
        labels = {"severity": self.severity} | ({} if self.tenant is None else {"tenant": self.tenant})
        annotations = {"summary": self.what, "runbook_url": f"{runbooks}#{self.name.lower()}"}
        return {
            "alert": self.name,
            "expr": _shown(self.expression),
            "for": self.holds_for,
            "labels": labels,
            "annotations": annotations,
        }


def rules_text(policy: Policy, runbooks: str, most_tenants: int) -> str:
    """A rules file. most_tenants: that have metrics of their own; the others cannot be watched."""
    names = list(policy.tenants)[:most_tenants]
    watched = [policy.tenants[name] for name in names if _promises(policy.tenants[name])]
    groups = {
        "curfew-attainment": [_missed(window) for window in WINDOWS],
        "curfew-objectives": [alert.rule(runbooks) for tenant in watched for alert in _burning(tenant)],
        "curfew-operation": [alert.rule(runbooks) for alert in OPERATION],
    }
    file = {"groups": [{"name": name, "rules": rules} for name, rules in groups.items() if rules]}
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(file, stream)
    return f"# Of policy {policy.version}, by `curfew policy alerts`.\n{stream.getvalue()}"


def alert_names() -> list[str]:
    """Of all alerts that there are; each has a section in the runbook."""
    return ["CurfewObjectiveBurnsFast", "CurfewObjectiveBurnsSlowly", *(alert.name for alert in OPERATION)]


def missed_ratio(window: str) -> str:
    """The recorded share of a tenant's answered requests that missed an objective."""
    return f"tenant:curfew_requests_missed:ratio_rate{window}"


def _missed(window: str) -> dict[str, object]:
    kept = f"sum by (tenant) (rate({controller.KEPT.name}[{window}]))"
    return {"record": missed_ratio(window), "expr": f"1 - {kept} / {_answered(window)}"}


def _burning(tenant: TenantPolicy) -> Iterator[Alert]:
    share = tenant.objectives.share
    for name, burns, severity in (
        ("CurfewObjectiveBurnsFast", FAST, PAGE),
        ("CurfewObjectiveBurnsSlowly", SLOW, TICKET),
    ):
        yield Alert(
            name,
            "\nor\n".join(_burns(tenant.name, 1 - share, burn) for burn in burns),
            severity,
            f"{{{{ $value | humanizePercentage }}}} of {tenant.name}'s answers miss an objective, and "
            f"{100 * (1 - share):.4g}% may",
            tenant=tenant.name,
        )


def _burns(tenant: str, budget: float, burn: Burn) -> str:
    limit = min(burn.factor * budget, MOST_RATIO)
    long, short = (
        f'{missed_ratio(window)}{{tenant="{tenant}"}} > {limit:.4g}' for window in (burn.long, burn.short)
    )
    return f"({long}\n  and {short})"


def _promises(tenant: TenantPolicy) -> bool:
    objectives = tenant.objectives
    times = (
        *(objectives.deadline_s, objectives.first_token_s),
        *(objectives.first_answer_token_s, objectives.per_token_s),
    )
    return any(time_s is not None for time_s in times)


def _answered(window: str) -> str:
    return f'sum by (tenant) (rate({controller.REQUESTS.name}{{outcome="answered"}}[{window}]))'


def _all(window: str) -> str:
    return f"sum by (tenant) (rate({controller.REQUESTS.name}[{window}]))"


def _shown(expression: str) -> str:
    return LiteralScalarString(expression + "\n") if "\n" in expression else expression


OPERATION = (
    Alert(
        "CurfewNoController",
        f"absent({controller.INFO.name})",
        PAGE,
        "No controller tells its metrics",
        "2m",
    ),
    Alert(
        "CurfewNoWorker",
        f"{controller.WORKERS_AVAILABLE.name} == 0",
        PAGE,
        "Controller {{ $labels.instance }} has no worker to send requests to",
        "1m",
    ),
    Alert(
        "CurfewWorkerLost",
        f"{controller.WORKERS_AVAILABLE.name} < {controller.WORKERS.name}",
        TICKET,
        "Controller {{ $labels.instance }} can send requests to {{ $value }} workers only",
        "5m",
    ),
    Alert(
        "CurfewWorkerFailed",
        f"max_over_time({worker.FAILED.name}[5m]) == 1",
        PAGE,
        "The device of worker {{ $labels.instance }} has failed",
    ),
    Alert(
        "CurfewRequestsFail",
        f'sum by (tenant) (rate({controller.REQUESTS.name}{{outcome="failed"}}[5m])) / {_all("5m")} > 0.02',
        PAGE,
        "{{ $value | humanizePercentage }} of {{ $labels.tenant }}'s requests fail",
        "5m",
    ),
    Alert(
        "CurfewRequestsRefused",
        f'sum by (tenant) (rate({controller.REFUSALS.name}{{reason!="limit"}}[15m])) / {_all("15m")} > 0.05',
        TICKET,
        "{{ $value | humanizePercentage }} of {{ $labels.tenant }}'s requests are refused within its limits",
        "15m",
    ),
    Alert(
        "CurfewPromisesOff",
        f"sum by (tenant) (rate({controller.KEPT.name}[6h])) / "
        f"sum by (tenant) (rate({controller.PROMISED.name}[6h])) < 0.9",
        TICKET,
        "Of what {{ $labels.tenant }} was promised, {{ $value | humanizePercentage }} was kept",
        "1h",
    ),
    Alert(
        "CurfewPredictionsOff",
        f"sum by (tenant) (rate({controller.PREDICTIONS_HELD.name}[6h])) / {_answered('6h')}\n"
        f"  < on (tenant) (max by (tenant) ({controller.TARGET_SHARE.name}) - 0.05)",
        TICKET,
        "{{ $value | humanizePercentage }} of {{ $labels.tenant }}'s requests end within their predicted "
        "latency, fewer than its share",
        "1h",
    ),
    Alert(
        "CurfewStoreAway",
        f"{controller.STORE_OUTAGE.name} > 30",
        TICKET,
        "Controller {{ $labels.instance }} has been deciding alone for {{ $value | humanizeDuration }}",
    ),
    Alert(
        "CurfewPolicyRejected",
        f"{controller.POLICY_REJECTED.name} == 1",
        TICKET,
        "The {{ $labels.policy }} policy file of controller {{ $labels.instance }} has errors and is not in "
        "force",
        "1m",
    ),
    Alert(
        "CurfewRecordingLost",
        f"increase({controller.RECORDING_LOST.name}[15m]) > 0",
        TICKET,
        "Controller {{ $labels.instance }} could not record {{ $value }} requests",
    ),
)
"""Those that no tenant's objective is in."""
