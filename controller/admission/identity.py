"""From what a call brings as credential to the tenant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc

from controller.admission.tokens import TokenError, TokenExpiredError, Tokens, looks_like_token
from controller.policy import Policy, TenantPolicy
from curfew.rpc.errors import RpcError, reason
from curfew.telemetry.tracing import Headers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, through whatever door.

    authorization: the values of the metadata or header of this name, of which there should be one.
    time_remaining_s: what is left now of the call's own deadline; None when it has none. trace: the headers
    of the trace that it is a part of, if it is of any.
    """

    authorization: tuple[str, ...]
    time_remaining_s: Callable[[], float | None]
    trace: Headers = ()


async def identify(policy: Policy, credential: str, tokens: Tokens | None = None) -> TenantPolicy:
    """The tenant whose API key this is, or whom this token names. tokens: checks them; None: there are none.

    Raises RpcError UNAUTHENTICATED, which never repeats the credential. It is one and the same for all that
    is wrong, so that nobody learns by it how far a forgery came; only who holds a good token that has expired
    is told so.
    """
    tenant = policy.tenant_of(credential)
    if tenant is None and tokens is not None and looks_like_token(credential):
        try:
            tenant = policy.tenants.get(await tokens.tenant(credential))
        except TokenExpiredError:
            raise _unauthenticated("the token has expired", "TOKEN_EXPIRED") from None
        except TokenError as error:
            log.debug("a token is refused: it %s", error)
    if tenant is None:
        raise _unauthenticated("the API key is not known", "API_KEY_UNKNOWN")
    return tenant


def authorizations(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, ...]:
    """The values of `authorization` in a call's metadata."""
    return tuple(str(value) for name, value in metadata or () if name == "authorization")


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
