"""Whether the planner is right, what it grants, and at what price."""

from __future__ import annotations

from curfew.telemetry import controller_metrics as c
from tools.dashboards.grafana import Dashboard, Panel, Query
from tools.dashboards.promql import answered, mean, rate, top

OTHERWISE = f"{rate(c.SHADOW_DIFFERENCES, 'kind')} / on () group_left () {rate(c.SHADOW_COMPARED)}"
PLANNER = Dashboard(
    "planner",
    "Planner",
    (
        (
            "Honesty",
            (
                Panel(
                    "Coverage",
                    "Of the answered requests, those within their predicted latency.",
                    [Query(f"{rate(c.PREDICTIONS_HELD, 'tenant')} / {answered('tenant')}", "{{tenant}}")],
                    "percentunit",
                ),
                Panel(
                    "Planning level",
                    "Of the forecast's quantiles, at which the coverage holds; and the target share.",
                    [
                        Query(top(c.PLANNING_LEVEL, "tenant"), "{{tenant}}"),
                        Query(top(c.TARGET_SHARE, "tenant"), "{{tenant}} must"),
                    ],
                    "percentunit",
                ),
                Panel(
                    "Kept over promised",
                    "1 if as many promises were kept as the promised probabilities said.",
                    [Query(f"{rate(c.KEPT, 'tenant')} / {rate(c.PROMISED, 'tenant')}", "{{tenant}}")],
                ),
            ),
        ),
        (
            "Budgets",
            (
                Panel(
                    "Granted",
                    "Mean reasoning tokens of a request.",
                    [Query(mean(c.BUDGET_GRANTED, "tenant"), "{{tenant}}")],
                ),
                Panel(
                    "Used",
                    "Mean reasoning tokens of a request.",
                    [Query(mean(c.BUDGET_USED, "tenant"), "{{tenant}}")],
                ),
                Panel(
                    "Changed in flight",
                    "Changes of running requests' budgets, each second.",
                    [Query(rate(c.ADJUSTMENTS, "tenant"), "{{tenant}}")],
                ),
            ),
        ),
        (
            "Market",
            (
                Panel(
                    "Price",
                    "What a slot-second costs.",
                    [
                        Query(top(c.POOL_PRICE), "the pool"),
                        Query(top(c.TENANT_PRICE, "tenant"), "{{tenant}}"),
                    ],
                ),
                Panel(
                    "Brownout",
                    "0 not at all, 1 less thinking, 2 no thinking, 3 waiting, 4 turned away.",
                    [Query(top(c.BROWNOUT, "tenant"), "{{tenant}}")],
                ),
                Panel(
                    "Squeezed",
                    "Requests given a place each second, by how far load had squeezed them.",
                    [Query(rate(c.DECISIONS, "brownout"), "{{brownout}}")],
                    "reqps",
                    stacked=True,
                ),
            ),
        ),
        (
            "Shadow policy and recording",
            (
                Panel(
                    "Decided otherwise",
                    "By the shadow policy: share of the requests that it decided too.",
                    [
                        Query(
                            OTHERWISE,
                            "{{kind}}",
                        )
                    ],
                    "percentunit",
                ),
                Panel(
                    "Faults of the shadow policy",
                    "Requests that it could not decide, each second.",
                    [Query(rate(c.SHADOW_FAULTS), "faults")],
                ),
                Panel(
                    "Recording",
                    "Requests each second.",
                    [Query(rate(c.RECORDED), "written"), Query(rate(c.RECORDING_LOST), "lost")],
                    "reqps",
                ),
            ),
        ),
    ),
)
