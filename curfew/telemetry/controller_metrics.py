"""The metrics of a controller.

Names of OpenTelemetry's conventions for generative AI (`gen_ai.server.…`) are written as Prometheus has them;
what they lack is `curfew_…`. A `tenant` is one of the policy's first, or `other`.
"""

from __future__ import annotations

from curfew.telemetry.metric import Kind, Metric

MOST_TENANTS = 100
"""Tenants that have metrics of their own, unless told otherwise."""

_SERVED = ("tenant", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
# Buckets that the conventions advise.
_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),  # an answer's first token may come late
)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_BUDGET_TOKENS = (0.0, *(float(2**power) for power in range(3, 16)))

INFO = Metric(
    "curfew_controller_info",
    Kind.GAUGE,
    "Always 1: version of Curfew, and digest of the policy in force.",
    ("version", "policy_version"),
)
UPTIME = Metric("curfew_controller_uptime_seconds", Kind.GAUGE, "Time since it started.")

REQUESTS = Metric(
    "curfew_requests_total",
    Kind.COUNTER,
    "Requests that ended: answered, refused (by a limit or since there was no place), failed, or left by "
    "their callers.",
    ("tenant", "outcome"),
)
KEPT = Metric(
    "curfew_requests_kept_total",
    Kind.COUNTER,
    "Answered requests that kept every objective. Over those answered, it is the attainment.",
    ("tenant",),
)
PROMISED = Metric(
    "curfew_requests_promised_total",
    Kind.COUNTER,
    "Sum of the probabilities promised for the answered requests: of how many the deadline should be kept.",
    ("tenant",),
)
PREDICTIONS_HELD = Metric(
    "curfew_predictions_held_total",
    Kind.COUNTER,
    "Answered requests that ended within their predicted latency. Over those answered, it is the coverage, "
    "which should be the target share.",
    ("tenant",),
)
REFUSALS = Metric(
    "curfew_refusals_total",
    Kind.COUNTER,
    "Refused requests by why: no plan keeps the promise, others needed the place more (price), too many "
    "waited (crowd), the tenant's own limit was reached, or the worker's queue was full (worker).",
    ("tenant", "reason"),
)
DECISIONS = Metric(
    "curfew_decisions_total",
    Kind.COUNTER,
    "Requests that were given a place, by how far load had squeezed them.",
    ("tenant", "brownout"),
)
TOKENS = Metric(
    "curfew_tokens_total",
    Kind.COUNTER,
    "Tokens of answered requests: of the prompt, of reasoning, of the answer with the closing text, and of "
    "answer probes beside them.",
    ("tenant", "kind"),
)
REASONING_ENDS = Metric(
    "curfew_reasoning_ends_total",
    Kind.COUNTER,
    "Answered requests by why reasoning ended.",
    ("tenant", "end"),
)
ADJUSTMENTS = Metric(
    "curfew_budget_adjustments_total",
    Kind.COUNTER,
    "Changes of the budgets of running requests.",
    ("tenant",),
)
FAILOVERS = Metric(
    "curfew_failovers_total", Kind.COUNTER, "Times that a request went on at another worker.", ("tenant",)
)
HEDGES = Metric(
    "curfew_hedges_total",
    Kind.COUNTER,
    "Times that a request went to a second worker too, since the first had not yielded a token in time.",
    ("tenant",),
)
DURATION = Metric(
    "gen_ai_server_request_duration_seconds",
    Kind.HISTOGRAM,
    "From receipt to the end. error_type is empty for answered requests, else refused or failed.",
    (*_SERVED, "error_type"),
    _DURATION_S,
)
FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "From receipt to the first token, of answered requests.",
    _SERVED,
    _FIRST_TOKEN_S,
)
PER_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    Kind.HISTOGRAM,
    "Mean time between tokens after the first, of answered requests.",
    _SERVED,
    _PER_TOKEN_S,
)
FIRST_ANSWER_TOKEN = Metric(
    "curfew_time_to_first_answer_token_seconds",
    Kind.HISTOGRAM,
    "From receipt to the first token of the answer, of answered requests.",
    ("tenant",),
    _FIRST_TOKEN_S,
)
BUDGET_GRANTED = Metric(
    "curfew_budget_granted_tokens",
    Kind.HISTOGRAM,
    "Reasoning tokens that answered requests were granted, in force at their end.",
    ("tenant",),
    _BUDGET_TOKENS,
)
BUDGET_USED = Metric(
    "curfew_budget_used_tokens",
    Kind.HISTOGRAM,
    "Reasoning tokens that answered requests used.",
    ("tenant",),
    _BUDGET_TOKENS,
)

TARGET_SHARE = Metric(
    "curfew_target_share_ratio", Kind.GAUGE, "Share of a tenant's requests that must be kept.", ("tenant",)
)
PLANNING_LEVEL = Metric(
    "curfew_planning_level_ratio",
    Kind.GAUGE,
    "Level of the forecast's quantiles at which plans are made so that the target share holds.",
    ("tenant",),
)
IN_FLIGHT = Metric("curfew_requests_in_flight", Kind.GAUGE, "Requests that wait or run.", ("tenant",))
TENANT_PRICE = Metric(
    "curfew_tenant_price",
    Kind.GAUGE,
    "What a slot-second costs a tenant, in quality times weight.",
    ("tenant",),
)
BROWNOUT = Metric(
    "curfew_brownout_level",
    Kind.GAUGE,
    "The furthest to which load squeezed one of a tenant's last requests: 0 not at all, 1 less thinking, "
    "2 no thinking, 3 waiting, 4 turned away.",
    ("tenant",),
)

POOL_PRICE = Metric(
    "curfew_pool_price", Kind.GAUGE, "What a slot-second costs whoever asks for more than its share."
)
POOL_LOAD = Metric(
    "curfew_pool_load_ratio", Kind.GAUGE, "What is asked for if nobody were squeezed, over what there is."
)
POOL_SLOTS = Metric("curfew_pool_slots", Kind.GAUGE, "Slots of the available workers.")
POOL_OCCUPIED = Metric("curfew_pool_slots_occupied", Kind.GAUGE, "Of these, in use.")
WAITING = Metric("curfew_requests_waiting", Kind.GAUGE, "Requests that wait for a place.")
WORKERS = Metric("curfew_workers", Kind.GAUGE, "Workers that the controller was told of.")
WORKERS_AVAILABLE = Metric("curfew_workers_available", Kind.GAUGE, "Of these, that requests can be sent to.")
WORKERS_EJECTED = Metric(
    "curfew_workers_ejected", Kind.GAUGE, "Workers that get nothing new for a while, as outliers."
)
CONTROLLERS = Metric("curfew_controllers", Kind.GAUGE, "Controllers that share the store, as far as known.")
STORE_OUTAGE = Metric(
    "curfew_store_outage_seconds", Kind.GAUGE, "For how long the store has been away; 0 while it is there."
)

POLICY_RELOADS = Metric(
    "curfew_policy_reloads_total",
    Kind.COUNTER,
    "Readings of a policy file since the start, by which (active or shadow) and what came of it (ok or "
    "rejected).",
    ("policy", "result"),
)
POLICY_REJECTED = Metric(
    "curfew_policy_rejected",
    Kind.GAUGE,
    "1 while the policy file, as it was read last, is not in force since it has errors.",
    ("policy",),
)
SHADOW_COMPARED = Metric(
    "curfew_shadow_compared_total", Kind.COUNTER, "Requests that the shadow policy decided too.", ("tenant",)
)
SHADOW_DIFFERENCES = Metric(
    "curfew_shadow_differences_total",
    Kind.COUNTER,
    "Of these, decided otherwise: in admission, mode or budget.",
    ("tenant", "kind"),
)
SHADOW_FAULTS = Metric(
    "curfew_shadow_faults_total", Kind.COUNTER, "Requests that the shadow policy could not decide."
)
RECORDED = Metric("curfew_recorded_requests_total", Kind.COUNTER, "Requests written to the recording.")
RECORDING_LOST = Metric(
    "curfew_recording_lost_total", Kind.COUNTER, "Requests that could not be written to the recording."
)

CONTROLLER_METRICS: tuple[Metric, ...] = tuple(
    value for value in globals().values() if isinstance(value, Metric)
)
"""All of them, in the order of this page."""
