"""What callers send that cannot be read, kept from looking like the server's own fault."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]

_GRPC = logging.getLogger("grpc._cython.cygrpc")
# gRPC logs these as errors, with a traceback: a caller who has left before the reply, a header or a method's
# name that is no text.
_CALLERS_FAULTS = (
    "ExecuteBatchError raised in core",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
    "Failed sending error status from server",
)


class Reading(grpc.aio.ServerInterceptor):
    """Ends a call whose message is none of its method's with INVALID_ARGUMENT. To be the first of a server's.

    gRPC would end it with UNKNOWN and the text of an exception, and log a traceback. Nothing that callers do
    wrong is logged: anybody could fill the log with it.
    """

    def __init__(self) -> None:
        # The same function again changes nothing.
        _GRPC.addFilter(_is_of_interest)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Reads the messages in place of gRPC."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return _reading(handler, handler.request_deserializer)


def _reading(handler: Any, parse: Parse) -> Handler:
    """The handler for requests as they come. Handlers are coroutines that write what they stream, or, for
    streams of requests, async generators.
    """
    serializer = handler.response_serializer
    if handler.unary_unary is not None:

        async def unary(raw: bytes, context: Context) -> Any:
            return await handler.unary_unary(await _parsed(raw, parse, context), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, serializer)
    if handler.unary_stream is not None:

        async def stream(raw: bytes, context: Context) -> None:
            await handler.unary_stream(await _parsed(raw, parse, context), context)

        return grpc.unary_stream_rpc_method_handler(stream, None, serializer)

    async def both(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        parsed = (await _parsed(raw, parse, context) async for raw in requests)
        async for response in handler.stream_stream(parsed, context):
            yield response

    return grpc.stream_stream_rpc_method_handler(both, None, serializer)


async def _parsed(raw: bytes, parse: Parse, context: Context) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not of the method's type")


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CALLERS_FAULTS)
