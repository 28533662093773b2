"""A real worker and a real controller as processes, with promises that suit this machine."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import grpc
import pytest
import pytest_asyncio

from curfew.processes import Service, start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2, worker_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "model"
LOOPBACK = "127.0.0.1:0"
LONG_SUM = "What is 12 + 37 + 45 + 10 + 11 + 82 + 99 + 4 + 51 + 63 + 7 + 28?"
LONG_ANSWER = "449"


@dataclass(frozen=True, slots=True)
class Answered:
    """Everything that came on one stream."""

    events: list[reasoning_pb2.GenerateResponse]

    @property
    def plan(self) -> reasoning_pb2.Plan:
        """The first event."""
        return self.events[0].plan

    @property
    def completion(self) -> reasoning_pb2.Completion:
        """The last event."""
        return self.events[-1].completion

    def text(self, phase: pb.Phase.ValueType) -> str:
        """Text of a phase."""
        return "".join(e.delta.text for e in self.events if e.delta.phase == phase)

    def tokens(self, phase: pb.Phase.ValueType) -> list[int]:
        """Token ids of a phase."""
        return [i for e in self.events if e.delta.phase == phase for i in e.delta.token_ids]


class Caller:
    """Calls with the contract's bare messages, which may be wrong: `curfew.Client` sends and shows values."""

    def __init__(self, address: str, key: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def generate(
        self, request: reasoning_pb2.GenerateRequest
    ) -> AsyncGenerator[reasoning_pb2.GenerateResponse, None]:
        """Streams what comes, or raises grpc.aio.AioRpcError."""
        call = ReasoningServiceStub(self._channel).Generate(request, metadata=self._metadata)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()


@dataclass(frozen=True, slots=True)
class System:
    """Addresses of a running system."""

    worker: str
    controller: str
    http: str = ""
    """Where callers over HTTP are served, if they are."""

    def client(self, tenant: str) -> Caller:
        """A caller in the name of a tenant of the tests' policy."""
        return Caller(self.controller, f"key-{tenant}")

    async def ask(self, tenant: str, question: str) -> Answered:
        """Asks one question greedily, and reads the stream to its end."""
        async with self.client(tenant) as client:
            return Answered([event async for event in client.generate(greedy(question))])

    async def load(self) -> worker_pb2.WorkerLoad:
        """The worker's load now."""
        return (await describe(self.worker)).load


def greedy(question: str) -> reasoning_pb2.GenerateRequest:
    """A question to be answered by the likeliest tokens."""
    return reasoning_pb2.GenerateRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=question)], sampling=pb.SamplingParams(temperature=0)
    )


async def describe(address: str) -> worker_pb2.DescribeWorkerResponse:
    """What a worker says of itself."""
    async with grpc.aio.insecure_channel(address) as channel:
        return await WorkerServiceStub(channel).DescribeWorker(worker_pb2.DescribeWorkerRequest())


def write_policy(path: Path, step_s: float) -> Path:
    """Promises in terms of the worker's own decode step, so that what fits does not depend on the machine."""

    def key(tenant: str) -> str:
        return f"sha256:{hashlib.sha256(f'key-{tenant}'.encode()).hexdigest()}"

    def ms(seconds: float) -> str:
        return f"{max(1, round(seconds * 1000))}ms"

    path.write_text(f"""\
apiVersion: curfew/v1
defaults:
  budget: {{max: 200, grace: 12, answer: 12}}
  otherwise: best_effort
tenants:
  - name: patient
    keys: [{key("patient")}]
    objectives: {{deadline: 10s, share: p90}}
  - name: hurried
    keys: [{key("hurried")}]
    mode: think
    objectives: {{deadline: {ms(0.015 + 40 * step_s)}, share: p95}}
  - name: instant
    keys: [{key("instant")}]
    objectives: {{deadline: {ms(6 * step_s)}, share: p95}}
  - name: agent
    keys: [{key("agent")}]
    objectives: {{deadline: 10s, share: p90}}
    budget: {{max: 40, answer: 200}}
  - name: strict
    keys: [{key("strict")}]
    objectives: {{deadline: 1ms, share: p95}}
    otherwise: refuse
  - name: maker
    keys: [{key("maker")}]
    brownout: none
    budget: {{answer: 400}}
  - name: rationed
    keys: [{key("rationed")}]
    limits: {{rate: 2/s}}
""")
    return path


async def start_worker(listen: str = LOOPBACK, *options: str) -> Service:
    """A worker with the demo model."""
    return await start_service("worker", ["--model", str(MODEL), "--listen", listen, *options])


async def start_controller(policy: Path, worker: str, *options: str, log: IO[bytes] | None = None) -> Service:
    """A controller of one worker."""
    arguments = ["--policy", str(policy), "--worker", worker, "--listen", LOOPBACK, "--admin", LOOPBACK]
    return await start_service("controller", [*arguments, *options], log=log)


@asynccontextmanager
async def running_system(directory: Path) -> AsyncIterator[tuple[System, Service, Service]]:
    """Starts a worker and a controller, and stops what is left of them."""
    worker = await start_worker()
    try:
        address = worker.addresses["listen"]
        step = (await describe(address)).speed.decode[0].step
        policy = write_policy(directory / "policy.yaml", step.seconds + step.nanos / 1e9)
        controller = await start_controller(policy, address, "--http", LOOPBACK)
        try:
            yield (
                System(address, controller.addresses["listen"], controller.addresses["http"]),
                worker,
                controller,
            )
        finally:
            await controller.stop()
    finally:
        await worker.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """One system for all tests that leave it as it was."""
    async with running_system(tmp_path_factory.mktemp("system")) as (running, _, _):
        yield running
