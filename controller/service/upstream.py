"""A worker's errors, as the caller should see them."""

from __future__ import annotations

import logging

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from curfew.rpc.errors import RpcError, invalid, reason, retry_after

log = logging.getLogger(__name__)

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


def _retry_info(error: grpc.aio.AioRpcError) -> error_details_pb2.RetryInfo:
    """The worker's, or our own."""
    retry = error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                break
            if any(detail.Unpack(retry) for detail in details):
                return retry
    return retry_after(RETRY_S)
