"""The metrics of a worker, which knows no tenant."""

from __future__ import annotations

from curfew.telemetry.metric import Kind, Metric

_WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

INFO = Metric(
    "curfew_worker_info",
    Kind.GAUGE,
    "Always 1: version of Curfew, the model, and what runs it.",
    ("version", "model", "device"),
)
FAILED = Metric(
    "curfew_worker_failed", Kind.GAUGE, "1 once the device has failed and the worker takes nothing more."
)
SLOTS = Metric("curfew_worker_slots", Kind.GAUGE, "Sequences that can run together.")
FREE_SLOTS = Metric("curfew_worker_free_slots", Kind.GAUGE, "Slots that are free.")
PAGES = Metric("curfew_worker_pages", Kind.GAUGE, "Pages of the attention layers' keys and values.")
FREE_PAGES = Metric("curfew_worker_free_pages", Kind.GAUGE, "Pages that are free, or can be freed at once.")
RUNNING = Metric("curfew_worker_running", Kind.GAUGE, "Sequences that run, answer probes included.")
WAITING = Metric("curfew_worker_waiting", Kind.GAUGE, "Requests that wait.")
BACKLOG = Metric(
    "curfew_worker_prefill_backlog_tokens", Kind.GAUGE, "Prompt tokens that have still to be prefilled."
)
STEP = Metric(
    "curfew_worker_step_seconds", Kind.GAUGE, "Median time of the last decode steps; absent before the first."
)
TOKENS_PER_S = Metric("curfew_worker_tokens_per_second", Kind.GAUGE, "Tokens sampled over the last second.")

REQUESTS = Metric(
    "curfew_worker_requests_total",
    Kind.COUNTER,
    "Requests that ended: completed, refused, failed, or cancelled by who had sent them.",
    ("outcome",),
)
TOKENS = Metric(
    "curfew_worker_tokens_total",
    Kind.COUNTER,
    "Tokens of completed samples: of the prompt, those of it that were found computed already "
    "(cached_prompt), of reasoning, closing text (forced), of the answer, and of answer probes.",
    ("kind",),
)
REASONING_ENDS = Metric(
    "curfew_worker_reasoning_ends_total", Kind.COUNTER, "Completed samples by why reasoning ended.", ("end",)
)
PROBES = Metric(
    "curfew_worker_probes_total",
    Kind.COUNTER,
    "Answer probes of completed samples: begun, or skipped for want of room.",
    ("result",),
)
QUEUE = Metric(
    "curfew_worker_queue_seconds",
    Kind.HISTOGRAM,
    "Of completed samples, from receipt until prefill began.",
    (),
    _WAIT_S,
)
PREFILL = Metric(
    "curfew_worker_prefill_seconds",
    Kind.HISTOGRAM,
    "Of completed samples, from the beginning of prefill to the first token.",
    (),
    _WAIT_S,
)

WORKER_METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
"""All of them, in the order of this page."""
