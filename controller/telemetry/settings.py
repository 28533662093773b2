"""What a controller is to tell of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.service.journal import Entry
from curfew.telemetry.controller_metrics import MOST_TENANTS
from curfew.telemetry.tracing import Tracing

Observer = Callable[[Entry, float], None]
"""Is told of each request once it is over, and when that was."""


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """By default nothing, at no cost.

    counted: whether requests are, for the readings. most_tenants: that have metrics of their own. tracing:
    None traces nothing. logged: whether each request has a log line. also: further observers.
    """

    counted: bool = False
    most_tenants: int = MOST_TENANTS
    tracing: Tracing | None = None
    logged: bool = False
    also: Sequence[Observer] = ()
