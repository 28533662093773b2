"""What a caller past a limit is told."""

from __future__ import annotations

import itertools
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from controller.admission.limits import admit
from controller.policy import TenantPolicy, parse_policy
from controller.state.memory import MemoryStore
from controller.state.shared import SharedState
from controller.state.store import Level
from curfew.rpc.durations import seconds
from curfew.rpc.errors import RpcError

Detail = TypeVar("Detail", bound=Message)


class World:
    """One controller with a store in memory, and the time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        ids = itertools.count()
        store = MemoryStore(lambda: self.now_s)
        self.shared = SharedState(
            store, Level(-3, 3), 0.0, lambda: self.now_s, lambda: 0.5, lambda: f"id-{next(ids)}"
        )


def tenant(limits: str) -> TenantPolicy:
    text = f"apiVersion: curfew/v1\ntenants:\n  - name: support\n    limits: {{{limits}}}\n"
    return parse_policy(text, "policy.yaml", None).tenants["support"]


def detail(error: RpcError, kind: type[Detail]) -> Detail:
    return next(found for found in error.details if isinstance(found, kind))


async def refused(world: World, policy: TenantPolicy, tokens: int = 1) -> tuple[RpcError, float]:
    """The refusal and when it asks to come again."""
    with pytest.raises(RpcError) as caught:
        await admit(world.shared, policy, tokens)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value, seconds(detail(caught.value, error_details_pb2.RetryInfo).retry_delay)


async def test_who_comes_again_when_told_is_let_in() -> None:
    world, policy = World(), tenant("rate: 120/m, burst: 3")
    for _ in range(3):
        await admit(world.shared, policy, 1)
    world.now_s += 0.125
    error, retry_s = await refused(world, policy)
    assert retry_s == 0.375
    assert error.message == (
        "limits.rate of tenant support is reached: 120/m, 3 at once; come again in 375 ms"
    )
    world.now_s += 0.374
    await refused(world, policy)
    world.now_s += 0.001
    await admit(world.shared, policy, 1)


async def test_programs_are_told_which_limit_of_whom() -> None:
    world, policy = World(), tenant("concurrency: 1")
    await admit(world.shared, policy, 1)
    error, retry_s = await refused(world, policy)
    assert retry_s > 0
    (violation,) = detail(error, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "tenant:support"
    assert violation.description == "limits.concurrency of tenant support is reached: 1 at once"
    told = detail(error, error_details_pb2.ErrorInfo)
    assert (told.reason, dict(told.metadata)) == (
        "LIMIT_REACHED",
        {"limit": "concurrency", "tenant": "support"},
    )


async def test_a_place_is_free_once_its_request_has_ended() -> None:
    world, policy = World(), tenant("concurrency: 1")
    permit = await admit(world.shared, policy, 1)
    await refused(world, policy)
    permit.end(tokens=5)
    second = await admit(world.shared, policy, 1)
    permit.end(tokens=5)
    await refused(world, policy)
    second.end(tokens=5)


async def test_tokens_count_as_they_turn_out() -> None:
    world, policy = World(), tenant("tokens: 600/m")
    first = await admit(world.shared, policy, 100)
    first.end(tokens=500)
    await world.shared.synchronise()
    error, retry_s = await refused(world, policy, 200)
    assert "limits.tokens of tenant support is reached: 600/m" in error.message
    assert retry_s == 10.0
    second = await admit(world.shared, policy, 100)
    second.end(tokens=0)
    await world.shared.synchronise()
    await admit(world.shared, policy, 100)


async def test_a_tenant_without_limits_is_never_refused() -> None:
    world = World()
    policy = parse_policy("apiVersion: curfew/v1\ntenants:\n  - name: a\n", "policy.yaml", None).tenants["a"]
    for _ in range(100):
        (await admit(world.shared, policy, 10**6)).end(tokens=10**6)
