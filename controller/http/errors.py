"""Errors in the form of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from pydantic import ValidationError

from controller.http.account import Json
from curfew.rpc.durations import seconds
from curfew.rpc.errors import RpcError, invalid

Renamed = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Kind:
    """status: of HTTP. type: the API's word."""

    status: int
    type: str


MOST_FAULTS = 1000
"""Of a body, that are listed to tell of the first: some 20 ms."""
_INTERNAL = _Kind(500, "server_error")
_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: _Kind(400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: _Kind(401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: _Kind(403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: _Kind(404, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _Kind(429, "rate_limit_error"),
    # Neither wrong nor better later: clients try again after 409 and 5xx, and must not here.
    grpc.StatusCode.FAILED_PRECONDITION: _Kind(422, "unprocessable_error"),
    grpc.StatusCode.UNIMPLEMENTED: _Kind(501, "server_error"),
    grpc.StatusCode.UNAVAILABLE: _Kind(503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: _Kind(504, "timeout_error"),
}
_STATUS = {"BODY_TOO_LARGE": 413, "BODY_TOO_SLOW": 408}
"""HTTP's own, where an ErrorInfo's reason says more than the code."""
_API_CODE = {"API_KEY_UNKNOWN": "invalid_api_key", "API_KEY_MISSING": "missing_api_key"}
"""Where the API has a word of its own for an ErrorInfo's reason. Others are told in lower case."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """What a caller is told. error: in the API's form."""

    status: int
    error: Json
    headers: dict[str, str]

    @property
    def body(self) -> Json:
        """As an answer holds it."""
        return {"error": self.error}


def api_error(error: RpcError, renamed: Renamed = str) -> ApiError:
    """An error of the contract in the API's words. renamed: what a field of the contract is called in the
    request that came.
    """
    kind = _KINDS.get(error.code, _INTERNAL)
    param: str | None = None
    message = error.message
    headers: dict[str, str] = {}
    info = error_details_pb2.ErrorInfo()
    for detail in error.details:
        match detail:
            case error_details_pb2.BadRequest():
                wrong = [(renamed(each.field), each.description) for each in detail.field_violations]
                param = wrong[0][0]
                message = "; ".join(f"{field}: {text}" for field, text in wrong)
            case error_details_pb2.RetryInfo():
                headers = _retry_headers(seconds(detail.retry_delay))
            case error_details_pb2.ErrorInfo():
                info = detail
            case _:
                pass
    code = _API_CODE.get(info.reason, info.reason.lower()) or None
    told: Json = {"message": message, "type": kind.type, "param": param, "code": code}
    if info.metadata:
        told["curfew"] = dict(info.metadata)
    if "request_id" in info.metadata:
        headers["x-request-id"] = info.metadata["request_id"]
    if info.reason == "BODY_TOO_SLOW":
        headers["connection"] = "close"  # the rest is not waited for
    return ApiError(_STATUS.get(info.reason, kind.status), told, headers)


def malformed(error: ValidationError) -> RpcError:
    """What is wrong with a request that is not of the API's form."""
    if error.error_count() > MOST_FAULTS:
        return invalid([("body", f"has {error.error_count()} faults; it is of another form")])
    return invalid(
        (_path(each["loc"]), _told(each["msg"], each["type"])) for each in error.errors(include_url=False)
    )


_TAG_AT = {"messages": 2, "input": 2, "response_format": 1}
"""Where pydantic's path into a field holds the name of the form that it took the value for."""


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for place, part in enumerate(location):
        if place == _TAG_AT.get(str(location[0])):
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "body"


def _told(message: str, kind: str) -> str:
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")


def _retry_headers(delay_s: float) -> dict[str, str]:
    """Whole seconds for everybody, milliseconds for those who read them."""
    return {"retry-after": str(max(1, math.ceil(delay_s))), "retry-after-ms": str(math.ceil(delay_s * 1000))}
