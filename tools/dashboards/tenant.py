"""One tenant: its promises, its times, how it thinks, and what load does to it."""

from __future__ import annotations

from curfew.telemetry import controller_metrics as c
from tools.dashboards.grafana import Choice, Dashboard, Panel, Query
from tools.dashboards.promql import answered, attainment, mean, quantile, rate, top

CHOSEN = 'tenant="$tenant"'

TENANT = Dashboard(
    "tenant",
    "One tenant",
    (
        (
            "Promises",
            (
                Panel(
                    "Attainment",
                    "Of the answered requests, those that kept every objective, and the share that must.",
                    [Query(attainment("", CHOSEN), "kept"), Query(top(c.TARGET_SHARE, "", CHOSEN), "must")],
                    "percentunit",
                ),
                Panel(
                    "Promised and kept",
                    "The mean promised probability, and what share was kept.",
                    [
                        Query(f"{rate(c.PROMISED, '', CHOSEN)} / {answered('', CHOSEN)}", "promised"),
                        Query(attainment("", CHOSEN), "kept"),
                    ],
                    "percentunit",
                ),
                Panel(
                    "Latency",
                    "From receipt to the end, of answered requests.",
                    [
                        Query(
                            quantile(q, c.DURATION, "", f'{CHOSEN}, error_type=""'),
                            f"{round(q * 100)} of 100",
                        )
                        for q in (0.5, 0.95, 0.99)
                    ],
                    "s",
                    exemplars=True,
                ),
            ),
        ),
        (
            "Times",
            (
                Panel(
                    "To the first token",
                    "95 of 100 requests.",
                    [
                        Query(quantile(0.95, c.FIRST_TOKEN, "", CHOSEN), "first token"),
                        Query(quantile(0.95, c.FIRST_ANSWER_TOKEN, "", CHOSEN), "first of the answer"),
                    ],
                    "s",
                    exemplars=True,
                ),
                Panel(
                    "Between tokens",
                    "95 of 100 requests.",
                    [Query(quantile(0.95, c.PER_TOKEN, "", CHOSEN), "time per token")],
                    "s",
                ),
                Panel(
                    "Requests",
                    "That ended each second, by what came of them, and those that wait or run.",
                    [
                        Query(rate(c.REQUESTS, "outcome", CHOSEN), "{{outcome}} each second"),
                        Query(f"sum ({c.IN_FLIGHT.name}{{{CHOSEN}}})", "in flight"),
                    ],
                ),
            ),
        ),
        (
            "Thinking",
            (
                Panel(
                    "Budget",
                    "Mean reasoning tokens that a request was granted, and that it used.",
                    [
                        Query(mean(c.BUDGET_GRANTED, "", CHOSEN), "granted"),
                        Query(mean(c.BUDGET_USED, "", CHOSEN), "used"),
                    ],
                ),
                Panel(
                    "Why reasoning ended",
                    "Requests each second.",
                    [Query(rate(c.REASONING_ENDS, "end", CHOSEN), "{{end}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Tokens",
                    "Each second.",
                    [Query(rate(c.TOKENS, "kind", CHOSEN), "{{kind}}")],
                    stacked=True,
                ),
            ),
        ),
        (
            "Under load",
            (
                Panel(
                    "Squeezed",
                    "Requests given a place each second, by how far load had squeezed them.",
                    [Query(rate(c.DECISIONS, "brownout", CHOSEN), "{{brownout}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused",
                    "Each second, by why.",
                    [Query(rate(c.REFUSALS, "reason", CHOSEN), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Price",
                    "What a slot-second costs it, in quality times weight.",
                    [Query(top(c.TENANT_PRICE, "", CHOSEN), "price")],
                ),
            ),
        ),
    ),
    (Choice("tenant", c.TARGET_SHARE.name),),
)
