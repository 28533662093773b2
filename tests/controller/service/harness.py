"""A controller on a free port, and its callers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2

from controller.policy import LivePolicy, Policy, parse_policy
from controller.service.membership import Sources
from controller.service.recording import Recorder
from controller.service.server import Addresses, Controller
from controller.service.shadow import ShadowPolicy
from controller.state.store import Store
from controller.telemetry.settings import TelemetrySettings
from curfew.telemetry.metric import Reading
from curfew.v1 import admin_pb2_grpc, generation_pb2, reasoning_pb2, reasoning_pb2_grpc

LOCAL = Addresses("127.0.0.1:0", "127.0.0.1:0")
POLICY = """\
apiVersion: curfew/v1
curves:
  sums: [[0, 0.28], [8, 0.23], [16, 0.33], [32, 0.53], [64, 0.84], [96, 1.0]]
defaults:
  quality: {curve: sums}
  budget: {max: 200, grace: 10%, answer: 12}
tenants:
  - name: analyst
    objectives: {deadline: 10s, share: p90, first_token: 5s, first_answer_token: 9s, per_token: 1s}
    key: {env: ANALYST}
  - name: support
    objectives: {deadline: 600ms}
    budget: {max: 40}
    key: {env: SUPPORT}
  - name: impossible
    objectives: {deadline: 2ms}
    key: {env: IMPOSSIBLE}
  - name: late
    objectives: {deadline: 2ms}
    otherwise: best_effort
    key: {env: LATE}
"""
KEYS = {"ANALYST": "a", "SUPPORT": "s", "IMPOSSIBLE": "i", "LATE": "l"}

Detail = TypeVar("Detail", bound=Message)


@dataclass
class Answer:
    """What a caller received, until the end or an error."""

    events: list[reasoning_pb2.GenerateResponse] = field(default_factory=list)
    error: grpc.aio.AioRpcError | None = None

    @property
    def plan(self) -> reasoning_pb2.Plan:
        return self.events[0].plan

    @property
    def completion(self) -> reasoning_pb2.Completion:
        return self.events[-1].completion

    def text(self, phase: generation_pb2.Phase.ValueType) -> str:
        return "".join(event.delta.text for event in self.events if event.delta.phase == phase)

    def token_ids(self, phase: generation_pb2.Phase.ValueType) -> list[int]:
        return [i for event in self.events if event.delta.phase == phase for i in event.delta.token_ids]


class Door:
    """A running controller, seen from outside."""

    def __init__(
        self,
        addresses: Addresses,
        shadow: ShadowPolicy | None = None,
        readings: Callable[[], Iterable[Reading]] = tuple,
    ) -> None:
        """readings: its metrics, of one in this process."""
        self.addresses = addresses
        self.shadow = shadow
        self.readings = readings
        # A transport that reads ahead as little as it may, so that a caller who does not read is felt.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        self._channel = grpc.aio.insecure_channel(addresses.listen, options=options)
        self._operators = grpc.aio.insecure_channel(addresses.admin)
        self.reasoning = reasoning_pb2_grpc.ReasoningServiceStub(self._channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self._operators)
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def close(self) -> None:
        await self._channel.close()
        await self._operators.close()

    async def becomes(self, serving: bool) -> None:
        """Returns once the controller's health is this."""
        wanted = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        call = self._watch(health_pb2.HealthCheckRequest(service="curfew.v1.ReasoningService"), timeout=20)
        try:
            async for response in call:
                if response.status == wanted:
                    return
        finally:
            call.cancel()

    def call(
        self, tenant: str, request: reasoning_pb2.GenerateRequest | None = None, timeout: float | None = 20
    ) -> grpc.aio.UnaryStreamCall[reasoning_pb2.GenerateRequest, reasoning_pb2.GenerateResponse]:
        return self.reasoning.Generate(request or ask(), metadata=key(tenant), timeout=timeout)

    async def generate(
        self, tenant: str, request: reasoning_pb2.GenerateRequest | None = None, timeout: float | None = 20
    ) -> Answer:
        """Everything that a request brings."""
        answer = Answer()
        try:
            async for event in self.call(tenant, request, timeout):
                answer.events.append(event)
        except grpc.aio.AioRpcError as error:
            answer.error = error
        return answer


def key(tenant: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {tenant[0]}"),)


def ask(content: str = "What is 12 + 37 + 45?", **fields: object) -> reasoning_pb2.GenerateRequest:
    user = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=content)
    return reasoning_pb2.GenerateRequest(messages=[user], **fields)  # type: ignore[arg-type]  # of any field


def detail(error: grpc.aio.AioRpcError | None, kind: type[Detail]) -> Detail:
    """The detail of a type that an error carries."""
    assert error is not None
    for name, value in error.trailing_metadata():
        if name == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for packed in status_pb2.Status.FromString(value).details:
                found = kind()
                if packed.Unpack(found):
                    return found
    raise AssertionError(f"no {kind.__name__} in {error}")


@asynccontextmanager
async def controller(
    workers: Sequence[str],
    policy: str | LivePolicy = POLICY,
    *,
    ready: bool = True,
    shadow: Callable[[], Policy] | None = None,
    recorder: Recorder | None = None,
    recorded_labels: Set[str] = frozenset(),
    store: Store | None = None,
    workers_dns: tuple[str, int] | None = None,
    telemetry: TelemetrySettings | None = None,
    http: str | None = None,
) -> AsyncIterator[Door]:
    """Runs a controller in this process. http: where its HTTP door is to be."""
    live = (
        policy
        if isinstance(policy, LivePolicy)
        else LivePolicy(lambda: parse_policy(policy, "policy.yaml", KEYS))
    )
    running = Controller(
        live,
        Sources(workers, workers_dns),
        time.monotonic,
        shadow=shadow,
        recorder=recorder,
        recorded_labels=recorded_labels,
        store=store,
        telemetry=telemetry,
    )
    addresses = await running.start(replace(LOCAL, http=http))
    door = Door(addresses, running.shadow, running.readings.read)
    try:
        if ready:
            await door.becomes(serving=True)
        yield door
    finally:
        await door.close()
        await running.stop(grace_s=0.0)
