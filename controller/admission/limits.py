"""Whether a tenant may have one more request, by the limits of its policy."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.rpc import error_details_pb2

from controller.policy import TenantPolicy
from controller.policy.model import Limits
from controller.policy.units import format_duration, format_rate
from controller.state import store
from controller.state.bucket import Bucket
from controller.state.memory import MemoryStore
from controller.state.shared import Permit, Refused, SharedState
from controller.state.store import Limit
from curfew.rpc.errors import RpcError, reason, retry_after


async def admit(shared: SharedState, policy: TenantPolicy, prompt_tokens: int) -> Permit:
    """Counts a request against its tenant's limits, before anything else is done for it. The permit must be
    ended, with the tokens that it took. prompt_tokens: as estimated.

    Raises RpcError, RESOURCE_EXHAUSTED, with the time at which it may come in if no other comes before.
    """
    verdict = await shared.admit(policy.name, _limits(policy.limits), prompt_tokens)
    if isinstance(verdict, Refused):
        raise _refused(policy, verdict)
    return verdict


class PlanLimits:
    """How often each tenant may ask for a plan alone: as often as for an answer, counted apart, and by each
    controller by itself.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds from any beginning."""
        self._counted = MemoryStore(clock)

    async def admit(self, policy: TenantPolicy) -> None:
        """Counts one. Raises RpcError, as for a request."""
        limits = store.Limits(rate=_limits(policy.limits).rate)
        verdict = await self._counted.admit(store.Ask(policy.name, limits, "", tokens=0, lease_ttl_s=0.0))
        if verdict.refused is not None:
            raise _refused(policy, Refused(verdict.refused, verdict.retry_s))


def _limits(limits: Limits) -> store.Limits:
    return store.Limits(
        rate=Bucket.of(limits.rate.per_s, limits.burst) if limits.rate else None,
        tokens=Bucket.of(limits.tokens.per_s, limits.tokens.amount) if limits.tokens else None,
        concurrency=limits.concurrency,
    )


def _refused(policy: TenantPolicy, refused: Refused) -> RpcError:
    name = policy.name
    why = (
        f"limits.{refused.limit.value} of tenant {name} is reached: {_allowed(policy.limits, refused.limit)}"
    )
    violation = error_details_pb2.QuotaFailure.Violation(subject=f"tenant:{name}", description=why)
    return RpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{why}; come again in {format_duration(refused.retry_s)}",
        retry_after(refused.retry_s),
        error_details_pb2.QuotaFailure(violations=[violation]),
        reason("LIMIT_REACHED", limit=refused.limit.value, tenant=name),
    )


def _allowed(limits: Limits, limit: Limit) -> str:
    if limit is Limit.RATE and limits.rate is not None:
        return f"{format_rate(limits.rate)}, {limits.burst} at once"
    if limit is Limit.TOKENS and limits.tokens is not None:
        return format_rate(limits.tokens)
    return f"{limits.concurrency} at once"
