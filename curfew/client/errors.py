"""Why a request was not answered, as typed exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from curfew.rpc.durations import seconds


class Code(Enum):
    """The status codes of gRPC, by google.rpc.Code's numbers."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of the request, such as `messages[0].role`, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Details:
    """What a status says beside its code and its message."""

    reason: str = ""
    """An UPPER_SNAKE_CASE word that programs can tell apart, such as POOL_FULL. Empty when none was sent."""
    metadata: Mapping[str, str] | None = None
    """The reason's numbers, such as {"delivered_tokens": "12"}."""
    retry_after_s: float | None = None
    """When to try again, in seconds from now. None when the service did not say."""
    violations: tuple[Violation, ...] = ()
    """What is wrong with the request, field by field."""


class CurfewError(Exception):
    """A request that was not answered. Each code that callers meet has a class of its own below."""

    _classes: ClassVar[dict[Code, type[CurfewError]]] = {}

    def __init_subclass__(cls, *, code: Code) -> None:
        CurfewError._classes[code] = cls

    def __init__(self, code: Code, message: str, details: Details = Details()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = details.reason
        self.metadata = dict(details.metadata or {})
        self.retry_after_s = details.retry_after_s
        self.violations = details.violations

    @staticmethod
    def of(code: Code, message: str, details: Details = Details()) -> CurfewError:
        """The error of this code, in its class."""
        return CurfewError._classes.get(code, CurfewError)(code, message, details)

    def __str__(self) -> str:
        """One line: the code, the message, and when to try again."""
        again = "" if self.retry_after_s is None else f" (try again in {self.retry_after_s:.1f} s)"
        return f"{self.code.name}: {self.message}{again}"


class Cancelled(CurfewError, code=Code.CANCELLED):
    """The request was cancelled by another thread, or dropped on its way to an answer."""


class InvalidRequest(CurfewError, code=Code.INVALID_ARGUMENT):
    """Something in the request is wrong: `violations` says what."""


class DeadlineExceeded(CurfewError, code=Code.DEADLINE_EXCEEDED):
    """No answer came within `timeout_s`."""


class Overloaded(CurfewError, code=Code.RESOURCE_EXHAUSTED):
    """The service has no room now, or the tenant has used what it may: `retry_after_s` says for how long."""


class Refused(CurfewError, code=Code.FAILED_PRECONDITION):
    """No plan can keep the tenant's promise, and its policy refuses then."""


class Unavailable(CurfewError, code=Code.UNAVAILABLE):
    """Nobody answers at the address, or there is no worker, or it was lost while the request ran."""


class Unauthenticated(CurfewError, code=Code.UNAUTHENTICATED):
    """The API key is missing or not known."""


LOST = (Unavailable, Cancelled)
"""A call that ended so may be made again elsewhere: nobody answered it to its end."""


def of_call(error: grpc.RpcError) -> CurfewError:
    """A call's error. Also of grpc.aio, whose errors have the same methods."""
    code = Code(error.code().value[0])
    return CurfewError.of(code, error.details() or "", _details(error))


def _details(error: grpc.RpcError) -> Details:
    metadata: dict[str, str | bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    status = metadata.get("grpc-status-details-bin")
    if not isinstance(status, bytes):
        return Details()
    try:
        details = status_pb2.Status.FromString(status).details
    except DecodeError:
        return Details()
    info, retry, bad = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
    )
    has_retry = False
    for detail in details:
        has_retry |= detail.Unpack(retry)
        detail.Unpack(info)
        detail.Unpack(bad)
    return Details(
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_s=seconds(retry.retry_delay) if has_retry else None,
        violations=tuple(Violation(each.field, each.description) for each in bad.field_violations),
    )
