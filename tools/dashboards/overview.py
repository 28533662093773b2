"""All tenants, the pool and its control on one page."""

from __future__ import annotations

from controller.policy.alerts import missed_ratio
from curfew.telemetry import controller_metrics as c
from tools.dashboards.grafana import Dashboard, Panel, Query
from tools.dashboards.promql import OVER, attainment, quantile, rate, top

BURN = f"{missed_ratio('1h')} / on (tenant) (1 - {top(c.TARGET_SHARE, 'tenant')})"
OVERVIEW = Dashboard(
    "overview",
    "Overview",
    (
        (
            "Promises",
            (
                Panel(
                    "Attainment",
                    "Of each tenant's answered requests, those that kept every objective.",
                    [Query(attainment("tenant"), "{{tenant}}")],
                    "percentunit",
                ),
                Panel(
                    "Error budget burning",
                    "How many times as fast as it may, over an hour. Needs the rules of `policy alerts`.",
                    [
                        Query(
                            f"{missed_ratio('1h')} / on (tenant) (1 - {top(c.TARGET_SHARE, 'tenant')})",
                            "{{tenant}}",
                        )
                    ],
                ),
                Panel(
                    "Latency, 95 of 100",
                    "From receipt to the end, of answered requests.",
                    [Query(quantile(0.95, c.DURATION, "tenant", 'error_type=""'), "{{tenant}}")],
                    "s",
                    exemplars=True,
                ),
            ),
        ),
        (
            "Traffic",
            (
                Panel(
                    "Requests",
                    "That ended each second, by what came of them.",
                    [Query(rate(c.REQUESTS, "outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused",
                    "Each second, by why.",
                    [Query(rate(c.REFUSALS, "reason"), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel("Tokens", "Each second.", [Query(rate(c.TOKENS, "kind"), "{{kind}}")], stacked=True),
            ),
        ),
        (
            "Pool",
            (
                Panel(
                    "Load and price",
                    "What is asked for, over what there is; what a slot-second costs.",
                    [Query(top(c.POOL_LOAD), "load"), Query(top(c.POOL_PRICE), "price")],
                ),
                Panel(
                    "Slots",
                    "Of the available workers, and requests that wait for one.",
                    [
                        Query(top(c.POOL_SLOTS), "all"),
                        Query(top(c.POOL_OCCUPIED), "in use"),
                        Query(f"sum ({c.WAITING.name})", "requests that wait"),
                    ],
                ),
                Panel(
                    "Workers",
                    "That are known, available, or outliers; requests that went on, or went out twice.",
                    [
                        Query(top(c.WORKERS), "known"),
                        Query(f"min ({c.WORKERS_AVAILABLE.name})", "available"),
                        Query(f"max ({c.WORKERS_EJECTED.name})", "outliers"),
                        Query(f"sum (increase({c.FAILOVERS.name}{OVER}))", "failovers"),
                        Query(f"sum (increase({c.HEDGES.name}{OVER}))", "hedges"),
                    ],
                ),
            ),
        ),
        (
            "Control",
            (
                Panel(
                    "Policy",
                    "1 while a file has errors and is not in force; how often files were read again.",
                    [
                        Query(top(c.POLICY_REJECTED, "policy"), "{{policy}} rejected"),
                        Query(
                            f"sum by (policy, result) (increase({c.POLICY_RELOADS.name}{OVER}))",
                            "{{policy}} read: {{result}}",
                        ),
                    ],
                ),
                Panel(
                    "Store",
                    "For how long it has been away, and how many controllers share it.",
                    [Query(top(c.STORE_OUTAGE), "away (s)"), Query(top(c.CONTROLLERS), "controllers")],
                ),
                Panel(
                    "Controllers' CPU",
                    "Seconds of CPU each second.",
                    [
                        Query(
                            f"rate(process_cpu_seconds_total{OVER}) and on (instance) {c.INFO.name}",
                            "{{instance}}",
                        )
                    ],
                ),
            ),
        ),
    ),
)
