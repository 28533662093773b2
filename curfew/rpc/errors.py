"""Errors as gRPC status codes with google.rpc details (AIP-193)."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from curfew.rpc.durations import duration

DOMAIN = "curfew"

# What a call is told travels in its trailing metadata, of which gRPC passes 8 KiB.
_MAX_VIOLATIONS = 8
_MAX_DESCRIPTION = 150


class RpcError(Exception):
    """Ends a call with a status. What it holds is meant for the caller."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    def status_bytes(self) -> bytes:
        """The google.rpc.Status, serialised for the trailing metadata."""
        packed = []
        for detail in self.details:
            wrapper = any_pb2.Any()
            wrapper.Pack(detail)
            packed.append(wrapper)
        number = code_pb2.Code.Value(self.code.name)
        status = status_pb2.Status(code=number, message=self.message, details=packed)
        return status.SerializeToString()


def invalid(violations: Iterable[tuple[str, str]]) -> RpcError:
    """INVALID_ARGUMENT for (field path, what is wrong with which value) pairs, at least one. Of many the
    first are told, of a long text its beginning.
    """
    found = [(field, _shortened(text)) for field, text in violations]
    told, left = found[:_MAX_VIOLATIONS], len(found[_MAX_VIOLATIONS:])
    details = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text) for field, text in told
        ]
    )
    message = "; ".join(f"{field}: {text}" for field, text in told) + (f"; and {left} more" if left else "")
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, message, details)


def reason(name: str, **metadata: object) -> error_details_pb2.ErrorInfo:
    """A detail that programs can tell apart: an UPPER_SNAKE_CASE reason, with its numbers."""
    values = {key: str(value) for key, value in metadata.items()}
    return error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN, metadata=values)


def retry_after(seconds: float) -> error_details_pb2.RetryInfo:
    """A detail that tells when to try again."""
    return error_details_pb2.RetryInfo(retry_delay=duration(seconds))


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_DESCRIPTION else f"{text[:_MAX_DESCRIPTION]} …"
