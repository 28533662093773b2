"""Calls become a part of the application's trace."""

from __future__ import annotations

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from curfew.client.tracing import current_trace


def test_a_call_within_a_span_is_a_part_of_its_trace() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("test").start_as_current_span("work") as span:
        headers = dict(current_trace())
    context = span.get_span_context()
    trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    assert headers["traceparent"].startswith(f"00-{trace_id}-{span_id}-")


def test_a_call_outside_of_spans_is_a_part_of_none() -> None:
    assert current_trace() == ()


def test_an_application_without_open_telemetry_stays_without() -> None:
    program = """
import sys
from curfew.client.tracing import current_trace
assert current_trace() == ()
assert not any(name.partition(".")[0] == "opentelemetry" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
