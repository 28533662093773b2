"""Traces, as the services see them. Needs no library: `otlp` has the traces that somebody sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

Attributes = Mapping[str, str | bool | int | float]
Headers = tuple[tuple[str, str], ...]

TRACE_HEADERS = ("traceparent", "tracestate")
"""In which a trace is handed on (W3C Trace Context), as gRPC metadata and in HTTP alike."""


def trace_headers(headers: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Those of a call's headers, or of its metadata, that a trace is handed on in."""
    return tuple((name, value) for name, value in headers if name in TRACE_HEADERS and isinstance(value, str))


class Trace(Protocol):
    """One request's span in this service, and those below it. Times are of the service's clock."""

    @property
    def recorded(self) -> bool:
        """Whether anybody will see it; if not, no span needs to be told."""

    @property
    def trace_id(self) -> str:
        """In hexadecimal digits; empty unless it is recorded."""

    @property
    def headers(self) -> Headers:
        """With which it is handed on to the next service."""

    def span(self, name: str, began_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
        """A part of the request, which is over."""

    def end(self, name: str, ended_s: float, attributes: Attributes, error: str = "") -> None:
        """The request is over. error: what kind; empty if all went well."""


class Tracing(Protocol):
    """Begins traces."""

    def begin(self, received: Headers, began_s: float) -> Trace:
        """A request came at this time; received: the trace that it is a part of, if it is of any."""


class _NoTrace:
    recorded = False
    trace_id = ""
    headers: Headers = ()

    def span(self, name: str, began_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
        pass

    def end(self, name: str, ended_s: float, attributes: Attributes, error: str = "") -> None:
        pass


NO_TRACE: Trace = _NoTrace()


class NoTracing:
    """Traces nothing."""

    def begin(self, received: Headers, began_s: float) -> Trace:
        """None."""
        return NO_TRACE
