"""What surrounds every call of a server: statuses for exceptions, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar, cast

import grpc

from curfew.rpc.drain import Drain, shutting_down
from curfew.rpc.errors import RpcError

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Request, Response]
Unary = Callable[[Request, Context[Request, Response]], Awaitable[Response]]
Streaming = Callable[[Request, Context[Request, Response]], AsyncGenerator[Response, None]]
Authorise = Callable[[str, "grpc.aio.ServicerContext[Any, Any]"], None]
"""Raises RpcError for a caller who may not call a method, given as /package.Service/Method."""


class _CallerLeftError(Exception):
    """What is written reaches nobody."""


_PUBLIC = ("/grpc.health.", "/grpc.reflection.")
"""They tell nothing of who calls."""


class Calls(grpc.aio.ServerInterceptor):
    """Runs the calls of a server: coroutines for one response, async generators for a stream. Health and
    reflection pass by.

    A call that raises RpcError ends with its status; any other exception ends it with a bare INTERNAL and is
    logged. A cancellation that is not its caller's is logged and ends it with UNAVAILABLE: gRPC would leave
    the caller waiting. A generator is closed as soon as its caller has left.
    """

    def __init__(self, authorise: Authorise | None = None) -> None:
        """authorise: who may call what; None: everybody who can connect."""
        self._authorise = authorise
        self._running = 0
        self._drain = Drain()
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuses new streams from now on, and returns when no call runs any more. Those that still do after
        `grace_s` seconds end with UNAVAILABLE.
        """
        self._drain.begin(grace_s)
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Request, Response] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Request, Response] | None:
        """Wraps unary-unary and unary-stream handlers; Curfew has no others."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_PUBLIC):
            return handler
        if handler.unary_unary is not None:
            unary = cast("Unary[Request, Response]", handler.unary_unary)

            async def call(request: Request, context: Context[Request, Response]) -> Response:
                return await self._run(method, context, lambda: unary(request, context))

            return grpc.unary_unary_rpc_method_handler(
                call, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            streaming = cast("Streaming[Request, Response]", handler.unary_stream)

            async def stream(request: Request, context: Context[Request, Response]) -> None:
                async def write_all() -> None:
                    # A generator handed to gRPC would be closed whenever the garbage collector finds it.
                    async with aclosing(streaming(request, context)) as responses:
                        async for response in responses:
                            try:
                                await context.write(response)
                            except grpc.aio.InternalError:
                                raise _CallerLeftError from None

                if self._drain.begun:
                    await _abort(context, shutting_down())
                await self._run(method, context, write_all)

            return grpc.unary_stream_rpc_method_handler(
                stream,
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler

    async def _run(
        self, method: str, context: Context[Request, Response], work: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Counts a call as running until its status is sent."""
        self._running += 1
        self._idle.clear()
        context.add_done_callback(self._ended)  # type: ignore[arg-type]  # a class in the stub
        try:
            async with self._drain.scope():
                if self._authorise is not None:
                    self._authorise(method, context)
                result = await work()
        except grpc.aio.AbortError:
            raise
        except _CallerLeftError:
            # For a stream that merely ends gRPC would try to send a status, and log that it could not.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.error("what a call waited for was cancelled", exc_info=error)
            await _abort(context, RpcError(grpc.StatusCode.UNAVAILABLE, "the call was cut off"))
        except Exception as error:  # the boundary to the wire
            await _abort(context, error)
        return result

    def _ended(self, _: object) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()


async def _abort(context: Context[Request, Response], error: Exception) -> NoReturn:
    if not isinstance(error, RpcError):
        # The text of an unforeseen exception is for the log alone.
        logger.error("unforeseen error in a call", exc_info=error)
        error = RpcError(grpc.StatusCode.INTERNAL, "internal error")
    metadata = (("grpc-status-details-bin", error.status_bytes()),)
    await context.abort(error.code, error.message, metadata)
