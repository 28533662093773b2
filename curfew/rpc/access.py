"""Who a caller is by its certificate."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import grpc

from curfew.rpc.errors import RpcError, reason


def peer_names(context: grpc.aio.ServicerContext[Any, Any]) -> frozenset[str]:
    """The names in the certificate that the caller has shown: the alternative names (of DNS, URI and the
    like), or the common name where there are none. Empty without a certificate.
    """
    return frozenset(name.decode(errors="replace") for name in context.peer_identities() or ())


def check_names(context: grpc.aio.ServicerContext[Any, Any], allowed: Set[str]) -> None:
    """Raises RpcError PERMISSION_DENIED unless the caller's certificate has one of these names, exactly."""
    if not peer_names(context) & allowed:
        raise RpcError(
            grpc.StatusCode.PERMISSION_DENIED,
            "the certificate shown has none of the names that may call this",
            reason("NAME_NOT_ALLOWED"),
        )
