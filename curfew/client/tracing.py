"""The trace that the application is in, if it has OpenTelemetry."""

from __future__ import annotations

import sys

from curfew.client.connection import Metadata


def current_trace() -> Metadata:
    """The metadata that makes a call a part of the trace that is current here.

    None where the application has not imported OpenTelemetry: no trace can be current then, and it is not
    imported for this.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
