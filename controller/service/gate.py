"""Turns strangers away at callers' door before their messages are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from controller.admission.identity import authorizations, bearer, identify
from controller.admission.tokens import Tokens
from controller.policy import LivePolicy
from curfew.rpc.errors import RpcError

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CLOSED = ("/curfew.",)


class Gate(grpc.aio.ServerInterceptor):
    """Refuses calls of Curfew's methods whose credential is nobody's.

    gRPC receives a request's message only once it has a handler for it, and so nothing of a stranger's is
    received, let alone parsed. The request itself is identified again, by the policy that is in force then.
    """

    def __init__(self, policy: LivePolicy, tokens: Tokens | None) -> None:
        self._policy = policy
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Lets a call through, or answers it with UNAUTHENTICATED."""
        if handler_call_details.method.startswith(_CLOSED):
            credentials = authorizations(handler_call_details.invocation_metadata)
            try:
                await identify(self._policy.current, bearer(credentials), self._tokens)
            except RpcError as error:
                return _refusing(error)
        return await continuation(handler_call_details)


def _refusing(error: RpcError) -> Handler:
    """A handler that waits for no message: one for a stream of them, which it does not read."""

    async def refuse(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(error.code, error.message, (("grpc-status-details-bin", error.status_bytes()),))

    return grpc.stream_stream_rpc_method_handler(refuse)
