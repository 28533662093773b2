"""Errors as gRPC status codes with google.rpc details (AIP-193)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import NoReturn, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "curfew"

logger = logging.getLogger(__name__)


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
    """INVALID_ARGUMENT for (field path, what is wrong with which value) pairs, at least one."""
    found = list(violations)
    details = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in found
        ]
    )
    message = "; ".join(f"{field}: {text}" for field, text in found)
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, message, details)


def reason(name: str, **metadata: object) -> error_details_pb2.ErrorInfo:
    """A detail that programs can tell apart: an UPPER_SNAKE_CASE reason, with its numbers."""
    values = {key: str(value) for key, value in metadata.items()}
    return error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN, metadata=values)


def retry_after(seconds: float) -> error_details_pb2.RetryInfo:
    """A detail that tells when to try again."""
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Request, Response]
Unary = Callable[[Request, Context[Request, Response]], Awaitable[Response]]
Streaming = Callable[[Request, Context[Request, Response]], AsyncGenerator[Response, None]]


async def _abort(context: Context[Request, Response], error: Exception) -> NoReturn:
    if not isinstance(error, RpcError):
        # The text of an unforeseen exception is for the log alone.
        logger.error("unforeseen error in a call", exc_info=error)
        error = RpcError(grpc.StatusCode.INTERNAL, "internal error")
    metadata = (("grpc-status-details-bin", error.status_bytes()),)
    await context.abort(error.code, error.message, metadata)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns RpcError into its status, and any other exception into a bare INTERNAL and a log entry."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Request, Response] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Request, Response] | None:
        """Wraps unary-unary and unary-stream handlers; Curfew has no others."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        if handler.unary_unary is not None:
            unary = cast("Unary[Request, Response]", handler.unary_unary)

            async def call(request: Request, context: Context[Request, Response]) -> Response:
                try:
                    return await unary(request, context)
                except grpc.aio.AbortError:
                    raise
                except Exception as error:  # the boundary to the wire
                    await _abort(context, error)

            return grpc.unary_unary_rpc_method_handler(
                call,
                handler.request_deserializer,
                handler.response_serializer,
            )
        # The health service's Watch is a coroutine that writes to its context.
        if inspect.isasyncgenfunction(handler.unary_stream):
            streaming = cast("Streaming[Request, Response]", handler.unary_stream)

            async def stream(
                request: Request, context: Context[Request, Response]
            ) -> AsyncIterator[Response]:
                try:
                    async with aclosing(streaming(request, context)) as responses:
                        async for response in responses:
                            yield response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:  # the boundary to the wire
                    await _abort(context, error)

            return grpc.unary_stream_rpc_method_handler(
                stream,
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler
