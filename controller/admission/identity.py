"""From the call's metadata to the tenant."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from controller.policy import Policy, TenantPolicy
from curfew.rpc.errors import RpcError, reason


def identify(policy: Policy, metadata: Iterable[tuple[str, str | bytes]]) -> TenantPolicy:
    """The tenant whose API key the call carries as `authorization: Bearer KEY`.

    Raises RpcError UNAUTHENTICATED. Its message never repeats what was sent.
    """
    values = [value for name, value in metadata if name == "authorization"]
    if not values:
        raise _unauthenticated("no API key: send metadata authorization: Bearer KEY", "API_KEY_MISSING")
    if len(values) > 1:
        raise _unauthenticated(f"authorization came {len(values)} times; send it once", "API_KEY_AMBIGUOUS")
    scheme, _, key = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise _unauthenticated("authorization is not of the form Bearer KEY", "API_KEY_MALFORMED")
    tenant = policy.tenant_of(key)
    if tenant is None:
        raise _unauthenticated("the API key is not known", "API_KEY_UNKNOWN")
    return tenant


def _unauthenticated(message: str, name: str) -> RpcError:
    return RpcError(grpc.StatusCode.UNAUTHENTICATED, message, reason(name))
