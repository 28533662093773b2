"""One worker: its load, its prompts, its requests and its process."""

from __future__ import annotations

from curfew.telemetry import worker_metrics as w
from tools.dashboards.grafana import Choice, Dashboard, Panel, Query
from tools.dashboards.promql import OVER, quantile, rate

CHOSEN = 'instance="$instance"'
CACHED, PROMPT = (f'{CHOSEN}, kind="{kind}"' for kind in ("cached_prompt", "prompt"))

WORKER = Dashboard(
    "worker",
    "One worker",
    (
        (
            "Load",
            (
                Panel(
                    "Sequences",
                    "That run, requests that wait, and slots that are free.",
                    [
                        Query(f"{metric.name}{{{CHOSEN}}}", name)
                        for metric, name in ((w.RUNNING, "run"), (w.WAITING, "wait"), (w.FREE_SLOTS, "free"))
                    ],
                ),
                Panel(
                    "Decode step", "Median of the last.", [Query(f"{w.STEP.name}{{{CHOSEN}}}", "step")], "s"
                ),
                Panel(
                    "Tokens sampled",
                    "Over the last second.",
                    [Query(f"{w.TOKENS_PER_S.name}{{{CHOSEN}}}", "tokens each second")],
                ),
            ),
        ),
        (
            "Prompts",
            (
                Panel(
                    "Prefill backlog",
                    "Prompt tokens that have still to be prefilled.",
                    [Query(f"{w.BACKLOG.name}{{{CHOSEN}}}", "tokens")],
                ),
                Panel(
                    "Found computed already",
                    "Share of the prompts' tokens.",
                    [
                        Query(
                            f"{rate(w.TOKENS, '', CACHED)} / {rate(w.TOKENS, '', PROMPT)}",
                            "share",
                        )
                    ],
                    "percentunit",
                ),
                Panel(
                    "Waiting and prefill",
                    "95 of 100 requests.",
                    [
                        Query(quantile(0.95, w.QUEUE, "", CHOSEN), "until prefill began"),
                        Query(quantile(0.95, w.PREFILL, "", CHOSEN), "prefill"),
                    ],
                    "s",
                    exemplars=True,
                ),
            ),
        ),
        (
            "Requests",
            (
                Panel(
                    "Requests",
                    "That ended each second, by what came of them.",
                    [Query(rate(w.REQUESTS, "outcome", CHOSEN), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Why reasoning ended",
                    "Samples each second.",
                    [Query(rate(w.REASONING_ENDS, "end", CHOSEN), "{{end}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Answer probes",
                    "Each second: begun, or skipped for want of room.",
                    [Query(rate(w.PROBES, "result", CHOSEN), "{{result}}")],
                ),
            ),
        ),
        (
            "Process",
            (
                Panel(
                    "Pages in use",
                    "Share of the pages of keys and values.",
                    [Query(f"1 - {w.FREE_PAGES.name}{{{CHOSEN}}} / {w.PAGES.name}{{{CHOSEN}}}", "pages")],
                    "percentunit",
                ),
                Panel(
                    "CPU and failure",
                    "Seconds of CPU each second; 1 once the device has failed.",
                    [
                        Query(f"rate(process_cpu_seconds_total{{{CHOSEN}}}{OVER})", "CPU"),
                        Query(f"{w.FAILED.name}{{{CHOSEN}}}", "failed"),
                    ],
                ),
                Panel(
                    "Memory",
                    "Of the process, beside the device's.",
                    [Query(f"process_resident_memory_bytes{{{CHOSEN}}}", "resident")],
                    "bytes",
                ),
            ),
        ),
    ),
    (Choice("instance", w.INFO.name),),
)
