"""A worker's errors, as the caller should see them."""

from __future__ import annotations

import logging
import re

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from curfew.rpc.errors import RpcError, invalid, reason, retry_after

log = logging.getLogger(__name__)

_SCHEMA = re.compile(r"answer_format\.json_schema|tools\[\d+\]\.parameters_json_schema")

RETRY_S = 1.0
"""When to try again, where the worker did not say."""


def caller_error(error: grpc.aio.AioRpcError, worker: str, delivered_tokens: int) -> RpcError:
    """What to end a call with whose worker ended with an error after so many tokens."""
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RpcError(code, "the pool is full", _retry_info(error), reason("POOL_FULL"))
    if code is grpc.StatusCode.OUT_OF_RANGE:
        # The worker has counted the prompt; its message holds the numbers.
        return invalid([("messages", error.details() or "too long for the model")])
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RpcError(code, "the call's own deadline has passed", reason("CALL_DEADLINE"))
    if code is grpc.StatusCode.INVALID_ARGUMENT and (wrong := _wrong_schemas(error)):
        return invalid(wrong)
    log.warning("worker %s ended a request with %s: %s", worker, code.name, error.details())
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return lost(worker, delivered_tokens)
    # What is left says that one of the two services is wrong, not the caller.
    return RpcError(grpc.StatusCode.INTERNAL, "internal error", reason("WORKER_REFUSED"))


def lost(worker: str, delivered_tokens: int) -> RpcError:
    """The worker went away, or ended a stream without completing it."""
    return RpcError(
        grpc.StatusCode.UNAVAILABLE,
        f"the worker was lost after {delivered_tokens} tokens had been delivered",
        retry_after(RETRY_S),
        reason("WORKER_LOST", worker=worker, delivered_tokens=delivered_tokens),
    )


def _wrong_schemas(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    """What a worker says of schemas that cannot be enforced, which it alone can tell."""
    request = error_details_pb2.BadRequest()
    if not _unpack(error, request):
        return []
    found = [(violation.field, violation.description) for violation in request.field_violations]
    return found if all(_SCHEMA.fullmatch(field) for field, _ in found) else []


def _retry_info(error: grpc.aio.AioRpcError) -> error_details_pb2.RetryInfo:
    """The worker's, or our own."""
    retry = error_details_pb2.RetryInfo()
    return retry if _unpack(error, retry) else retry_after(RETRY_S)


def _unpack(error: grpc.aio.AioRpcError, detail: Message) -> bool:
    """Reads an error's detail of this kind; false where it has none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                return False
            return any(each.Unpack(detail) for each in details)
    return False
