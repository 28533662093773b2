"""From what a call brings as credential to the tenant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from controller.policy import Policy, TenantPolicy
from curfew.rpc.errors import RpcError, reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, through whatever door.

    authorization: the values of the metadata or header of this name, of which there should be one.
    time_remaining_s: what is left now of the call's own deadline; None when it has none.
    """

    authorization: tuple[str, ...]
    time_remaining_s: Callable[[], float | None]


async def identify(policy: Policy, credential: str) -> TenantPolicy:
    """The tenant whose API key this is. Raises RpcError UNAUTHENTICATED, whose message never repeats it."""
    tenant = policy.tenant_of(credential)
    if tenant is None:
        raise _unauthenticated("the API key is not known", "API_KEY_UNKNOWN")
    return tenant


def bearer(authorization: tuple[str, ...]) -> str:
    """The credential in `authorization: Bearer KEY`.

    Raises RpcError UNAUTHENTICATED. Its message never repeats what was sent.
    """
    if not authorization:
        raise _unauthenticated("no API key: send authorization: Bearer KEY", "API_KEY_MISSING")
    if len(authorization) > 1:
        times = len(authorization)
        raise _unauthenticated(f"authorization came {times} times; send it once", "API_KEY_AMBIGUOUS")
    scheme, _, key = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise _unauthenticated("authorization is not of the form Bearer KEY", "API_KEY_MALFORMED")
    return key


def _unauthenticated(message: str, name: str) -> RpcError:
    return RpcError(grpc.StatusCode.UNAUTHENTICATED, message, reason(name))
