"""A real worker server on loopback, over a small random model whose steps a test can hold up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import grpc
import torch
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from torch import Tensor

from curfew.rpc.durations import duration
from curfew.rpc.server import Server
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub, add_WorkerServiceServicer_to_server
from tests.worker.engine.small import (
    RecordingRunner,
    default_closing,
    make_runner,
    make_settings,
    small_model,
)
from worker.engine.build import Model
from worker.engine.engine import Engine
from worker.engine.grammar import Grammars
from worker.engine.scheduler import Plan
from worker.service.door import SERVICE
from worker.service.engine_thread import EngineThread
from worker.service.requests import RequestReader
from worker.service.servicer import ServicerSettings, WorkerServicer

if TYPE_CHECKING:
    from curfew.v1.worker_pb2_grpc import WorkerServiceAsyncStub

GenerateRequest = worker_pb2.WorkerServiceGenerateRequest
GenerateResponse = worker_pb2.WorkerServiceGenerateResponse

T = TypeVar("T")

# Of a connection that takes little ahead of its reader.
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))

MODEL = small_model()
RANDOM_SEED = 4321


class Steps:
    """What happens to the steps of an engine.

    held: each waits to be let. endless: the model ends neither its reasoning nor its answer. failure: what a
    step raises. spoilt: the request for which the model chooses a token that there is none of.
    """

    def __init__(self, *, held: bool = False, endless: bool = False) -> None:
        self.held, self.endless = held, endless
        self.failure: Exception | None = None
        self.spoilt: str | None = None
        self.reached = threading.Semaphore(0)
        self._let = threading.Semaphore(0)
        self._waits = False

    def let_one(self) -> None:
        """Lets the step be made that waits, if there is one."""
        if self._waits:
            self._waits = False
            self._let.release()

    def let(self, steps: int) -> None:
        """Lets so many steps be made."""
        for _ in range(steps):
            self._let.release()

    def let_go(self) -> None:
        """Lets all steps be made from now on."""
        self.held = False
        self._let.release()

    def wait(self) -> None:
        self.reached.release()
        if self.held:
            self._waits = True
            self._let.acquire()
            self._waits = False


class SteppedRunner(RecordingRunner):
    """A runner that its test rules."""

    rule: Steps

    def run(self, plan: Plan) -> Tensor:
        self.rule.wait()
        if self.rule.failure is not None:
            raise self.rule.failure
        logits = super().run(plan)
        if self.rule.endless:
            chat = MODEL.chat
            tags = {number for number, text in enumerate(chat.token_bytes) if b"<" in text}
            logits[:, sorted(tags | chat.special_ids | chat.end_ids)] = -torch.inf
        if self.rule.spoilt is not None:
            sequences = [*plan.decodes, *(piece.sequence for piece in plan.pieces)]
            beyond = [
                torch.inf if s.request.request_id == self.rule.spoilt else -torch.inf for s in sequences
            ]
            logits = torch.cat([logits, torch.tensor(beyond)[:, None]], dim=1)
        return logits


@dataclass(slots=True)
class Worker:
    """A running worker. failures: how often it has said that its device failed."""

    address: str
    channel: grpc.aio.Channel
    stub: WorkerServiceAsyncStub
    server: Server
    thread: EngineThread
    reader: RequestReader
    steps: Steps
    runner: SteppedRunner
    failures: int = 0

    async def serves(self) -> bool:
        """What its health says."""
        response = await check_health(self.channel)
        return response.status == health_pb2.HealthCheckResponse.SERVING

    async def load(self) -> worker_pb2.WorkerLoad:
        described = await self.stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())
        return described.load

    async def until(self, holds: Callable[[worker_pb2.WorkerLoad], bool]) -> worker_pb2.WorkerLoad:
        """Asks for the load until it is as it should be."""
        while not holds(load := await self.load()):
            pass
        return load

    async def between_steps(self, call: Awaitable[T]) -> T:
        """Waits for a call that the engine answers between two steps, and lets steps be made meanwhile."""
        task = asyncio.ensure_future(call)
        while not task.done():
            self.steps.let_one()
            await self.load()
        return await task

    async def ask(self, request: GenerateRequest) -> Answer:
        """Runs a request to its end."""
        answer = Answer()
        async for response in self.stub.Generate(request):
            answer.take(response)
        return answer


@asynccontextmanager
async def serving(
    model: Model = MODEL,
    *,
    steps: Steps | None = None,
    clock: Callable[[], float] = time.monotonic,
    flush_s: float = 0.0,
    step_limit_s: float = 120.0,
    step_clock: Callable[[], float] = time.monotonic,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    grammars: Grammars | None = None,
    **sizes: int,
) -> AsyncIterator[Worker]:
    """A worker for as long as the context is open; sizes are of its engine. step_clock: of the limit. At the
    end nothing may be left in it.
    """
    steps = steps or Steps()
    settings = make_settings(**sizes)
    runner = make_runner(model, settings, SteppedRunner)
    runner.rule = steps
    engine = Engine(runner, model.chat, settings, clock)

    def failed() -> None:
        worker.failures += 1

    thread = EngineThread(engine, on_failure=failed, step_limit_s=step_limit_s, clock=step_clock)
    reader = RequestReader(model.chat, default_closing(model), grammars)
    server = Server(max_message_bytes=1 << 20, interceptors=interceptors)
    servicer = WorkerServicer(
        thread,
        reader,
        worker_pb2.DescribeWorkerResponse(model=model.name),
        ServicerSettings(flush_s=flush_s),
        clock=clock,
        random_seed=lambda: RANDOM_SEED,
    )
    add_WorkerServiceServicer_to_server(servicer, server.grpc)
    address = await server.start("127.0.0.1:0", [SERVICE])
    thread.start()
    await server.set_serving(True)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = WorkerServiceStub(channel)
        worker = Worker(address, channel, stub, server, thread, reader, steps, runner)
        try:
            yield worker
        finally:
            steps.let_go()
            await server.drain(0.0)
            await thread.stop()
    if not worker.failures:
        assert engine.idle
        engine.check_integrity()


async def check_health(channel: grpc.aio.Channel) -> health_pb2.HealthCheckResponse:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return await check(health_pb2.HealthCheckRequest(service=SERVICE))


_ids = count()


def ask(
    request_id: str | None = None,
    *,
    text: str = "1+2?",
    reasoning: int = 12,
    grace: int = 2,
    answer: int = 6,
    temperature: float = 0.0,
    reason_until_s: float | None = None,
) -> GenerateRequest:
    """A request with an id of its own that thinks if it may."""
    request = GenerateRequest(
        request_id=f"r{next(_ids)}" if request_id is None else request_id,
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        mode=pb.MODE_THINK if reasoning else pb.MODE_NO_THINK,
        budget=pb.Budget(reasoning_tokens=reasoning, grace_tokens=grace, answer_tokens=answer),
        sampling=pb.SamplingParams(temperature=temperature),
    )
    if reason_until_s is not None:
        request.budget.reason_until.CopyFrom(duration(reason_until_s))
    return request


@dataclass(slots=True)
class Answer:
    """What a stream brought. Of several samples, everything together but `completions`."""

    responses: list[GenerateResponse] = field(default_factory=list)

    def take(self, response: GenerateResponse) -> None:
        self.responses.append(response)

    @property
    def events(self) -> list[str | None]:
        return [response.WhichOneof("event") for response in self.responses]

    @property
    def deltas(self) -> list[pb.Delta]:
        return [response.delta for response in self.responses if response.HasField("delta")]

    @property
    def completions(self) -> dict[int, worker_pb2.WorkerCompletion]:
        return {r.sample: r.completion for r in self.responses if r.HasField("completion")}

    @property
    def completion(self) -> worker_pb2.WorkerCompletion:
        (completion,) = self.completions.values()
        return completion

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """Phase and id of each."""
        return [(delta.phase, token) for delta in self.deltas for token in delta.token_ids]

    def text(self, phase: pb.Phase.ValueType) -> str:
        return "".join(delta.text for delta in self.deltas if delta.phase == phase)

    def count(self, phase: pb.Phase.ValueType) -> int:
        return sum(token_phase == phase for token_phase, _ in self.tokens)


@dataclass(slots=True)
class Refusal:
    """How a call ended that failed."""

    code: grpc.StatusCode
    text: str
    reason: error_details_pb2.ErrorInfo
    retry: error_details_pb2.RetryInfo
    violations: dict[str, str]


async def refusal(call: AsyncIterable[object]) -> Refusal:
    """Reads a stream that must fail, and what it says."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return told(error)
    raise AssertionError("it did not fail")


def told(error: grpc.aio.AioRpcError) -> Refusal:
    """Reads an error and its details."""
    info, retry, bad = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
    )
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stub wants the synchronous Call
    for detail in status.details if status else ():
        assert any(detail.Unpack(kind) for kind in (info, retry, bad)), detail
    violations = {violation.field: violation.description for violation in bad.field_violations}
    return Refusal(error.code(), error.details() or "", info, retry, violations)
