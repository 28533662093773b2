"""A worker without a model: a real gRPC server that keeps to the contract – budget, phases, timings, load –
with scripted lengths and steps of a fixed time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc

from controller import wire
from curfew.rpc.calls import Authorise, Context
from curfew.rpc.errors import RpcError
from curfew.rpc.server import Server
from curfew.rpc.tls import ServerTls
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2, worker_pb2_grpc

GenerateContext = Context[worker_pb2.WorkerServiceGenerateRequest, worker_pb2.WorkerServiceGenerateResponse]
DescribeContext = Context[worker_pb2.DescribeWorkerRequest, worker_pb2.DescribeWorkerResponse]
AdjustContext = Context[worker_pb2.AdjustBudgetRequest, worker_pb2.AdjustBudgetResponse]
Response = worker_pb2.WorkerServiceGenerateResponse

ALL = worker_pb2.WorkerCapabilities(
    resume=True, adjust=True, token_ids=True, tools=True, answer_format=True, probe=True
)
CLOSING_TOKENS = 3
FORMAT_TOKENS = 10


@dataclass
class Script:
    """What the model does with every request.

    reasoning: tokens after which it closes its reasoning by itself. answer: a token a word. calls: what it
    then writes of calls of tools, a token each; malformed: what of it is none. step_s: of every step, which
    really takes slow_step_s if that is set. refuse_with: raised at once. fail_after, pause_after: tokens
    after which `failure` is raised, or `go_on` awaited.
    """

    reasoning: int = 20
    answer: str = "it is 42"
    calls: tuple[pb.ToolCallDelta, ...] = ()
    malformed: tuple[pb.MalformedToolCall, ...] = ()
    step_s: float = 0.001
    slow_step_s: float | None = None
    refuse_with: Exception | None = None
    fail_after: int | None = None
    failure: Exception = field(default_factory=lambda: RpcError(grpc.StatusCode.UNAVAILABLE, "secret"))
    pause_after: int | None = None


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Serves on this machine while its context is open, at `address`."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        slots: int = 4,
        max_sequence_tokens: int = 2048,
        port: int = 0,
        tls: ServerTls | None = None,
        authorise: Authorise | None = None,
        capabilities: worker_pb2.WorkerCapabilities | None = ALL,
        model: str = "fake",
    ) -> None:
        """capabilities: None tells none, as a worker that is older than them."""
        self._capabilities = capabilities
        self._model = model
        self.script = script or Script()
        self.address = f"127.0.0.1:{port}"
        self.requests: list[worker_pb2.WorkerServiceGenerateRequest] = []
        self.metadata: list[tuple[tuple[str, str | bytes], ...]] = []
        """Of each of them."""
        self.adjusted: list[worker_pb2.AdjustBudgetRequest] = []
        self.loses_resumed = True
        """Whether it also fails requests that others have lost."""
        self._runs: dict[str, _Run] = {}
        self.waiting, self.running, self.cancelled = 0, 0, 0
        self.paused = asyncio.Event()
        self.go_on = asyncio.Event()
        self.idle = asyncio.Event()
        self._limits = worker_pb2.WorkerLimits(
            max_sequence_tokens=max_sequence_tokens, slots=slots, pages=1000, page_tokens=16, queue=16
        )
        self._free = asyncio.Semaphore(slots)
        self._server = Server(max_message_bytes=8 << 20, tls=tls, authorise=authorise)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server.grpc)

    async def __aenter__(self) -> Self:
        self.address = await self._server.start(self.address, ["curfew.v1.WorkerService"])
        await self.set_serving(True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self._server.drain(0.0)

    async def set_serving(self, serving: bool) -> None:
        await self._server.set_serving(serving)

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[Response, None]:
        received_s = time.monotonic()
        self.requests.append(request)
        self.metadata.append(tuple(context.invocation_metadata() or ()))
        if self.script.refuse_with is not None:
            raise self.script.refuse_with
        self.idle.clear()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        finished = False
        try:
            run = self._runs[request.request_id] = _Run(self.script, request, received_s)
            yield Response(started=run.started(), load=self._load())
            resumed = sum(len(passed.token_ids) for passed in request.resume)
            for tokens, delta in enumerate(run.deltas()):
                if resumed > 0:
                    resumed -= len(delta.token_ids)
                    run.note(delta)
                    continue
                if tokens == self.script.pause_after:
                    self.paused.set()
                    await self.go_on.wait()
                if tokens == self.script.fail_after and (self.loses_resumed or "." not in request.request_id):
                    raise self.script.failure
                await asyncio.sleep(self.script.slow_step_s or self.script.step_s)
                run.note(delta)
                if self._capabilities is not None and not self._capabilities.token_ids:
                    del delta.token_ids[:]
                yield Response(delta=delta)
            finished = True
            yield Response(completion=run.completion(), load=self._load())
        finally:
            self.cancelled += not finished
            self.running -= 1
            self._runs.pop(request.request_id, None)
            self._free.release()
            if self.running == self.waiting == 0:
                self.idle.set()

    async def DescribeWorker(
        self, request: worker_pb2.DescribeWorkerRequest, context: DescribeContext
    ) -> worker_pb2.DescribeWorkerResponse:
        step = wire.duration(max(1e-4, self.script.step_s))
        return worker_pb2.DescribeWorkerResponse(
            model=self._model,
            version="1",
            device="none",
            dtype="none",
            limits=self._limits,
            speed=worker_pb2.WorkerSpeed(
                decode=[worker_pb2.DecodeSpeed(batch_size=1, step=step)], prefill_tokens_per_s=20_000
            ),
            load=self._load(),
            bytes_per_token=1.0,
            capabilities=self._capabilities,
            licence=worker_pb2.ModelLicence(name="Apache-2.0"),
        )

    async def AdjustBudget(
        self, request: worker_pb2.AdjustBudgetRequest, context: AdjustContext
    ) -> worker_pb2.AdjustBudgetResponse:
        self.adjusted.append(request)
        run = self._runs.get(request.request_id)
        if run is None:
            raise RpcError(grpc.StatusCode.NOT_FOUND, "does not run here")
        run.until_s = time.monotonic() - run.received_s + wire.seconds(request.reason_until)
        in_force = request if request.HasField("reasoning_tokens") else run.budget
        return worker_pb2.AdjustBudgetResponse(reasoning_tokens=in_force.reasoning_tokens)

    def _load(self) -> worker_pb2.WorkerLoad:
        free = self._limits.slots - self.running
        return worker_pb2.WorkerLoad(
            running=self.running, waiting=self.waiting, free_slots=free, free_pages=1000
        )


class _Run:
    """One request's way through the script."""

    def __init__(
        self, script: Script, request: worker_pb2.WorkerServiceGenerateRequest, received_s: float
    ) -> None:
        self._script, self.budget, self.received_s = script, request.budget, received_s
        until = request.budget.reason_until
        self.until_s = wire.seconds(until) if request.budget.HasField("reason_until") else math.inf
        self._queue_s = time.monotonic() - received_s
        self._prompt = FORMAT_TOKENS + sum(len(turn.content.encode()) for turn in request.messages)
        self._thinks = request.mode == pb.MODE_THINK
        self._end = pb.REASONING_END_NATURAL if self._thinks else pb.REASONING_END_NONE
        self._tokens = {pb.PHASE_REASONING: 0, pb.PHASE_FORCED: 0, pb.PHASE_ANSWER: 0}
        self._steps = 0
        self._first_s: float | None = None
        self._first_answer_s: float | None = None

    def started(self) -> worker_pb2.GenerationStarted:
        return worker_pb2.GenerationStarted(prompt_tokens=self._prompt, queue=wire.duration(self._queue_s))

    def deltas(self) -> Iterator[pb.Delta]:
        """One a step; decides at each step, as the time may strike at any."""
        if self._thinks:
            yield from self._reasoning()
        for number, word in enumerate(self._script.answer.split()[: self.budget.answer_tokens]):
            text = word if number == 0 else f" {word}"
            yield pb.Delta(phase=pb.PHASE_ANSWER, text=text, token_ids=[200 + number])
        for number, call in enumerate(self._script.calls):
            yield pb.Delta(phase=pb.PHASE_ANSWER, token_ids=[300 + number], tool_calls=[call])

    def _reasoning(self) -> Iterator[pb.Delta]:
        limit = self.budget.reasoning_tokens + self.budget.grace_tokens
        for number in range(self._script.reasoning):
            late = self._elapsed_s() >= self.until_s
            if number == limit or late:
                self._end = pb.REASONING_END_DEADLINE if late else pb.REASONING_END_BUDGET
                yield pb.Delta(phase=pb.PHASE_FORCED, token_ids=[1] * CLOSING_TOKENS)
                return
            yield pb.Delta(phase=pb.PHASE_REASONING, text=f"r{number} ", token_ids=[100 + number])

    def note(self, delta: pb.Delta) -> None:
        self._steps += 1
        self._tokens[delta.phase] += len(delta.token_ids)
        self._first_s = self._first_s or self._elapsed_s()
        if delta.phase == pb.PHASE_ANSWER:
            self._first_answer_s = self._first_answer_s or self._elapsed_s()

    def completion(self) -> worker_pb2.WorkerCompletion:
        first_s = self._first_s or self._elapsed_s()
        return worker_pb2.WorkerCompletion(
            finish_reason=pb.FINISH_REASON_TOOL_CALLS if self._script.calls else pb.FINISH_REASON_STOP,
            malformed_tool_calls=self._script.malformed,
            reasoning_end=self._end,
            usage=pb.TokenUsage(
                prompt_tokens=self._prompt,
                output_tokens=sum(self._tokens.values()),
                reasoning_tokens=self._tokens[pb.PHASE_REASONING],
                forced_tokens=self._tokens[pb.PHASE_FORCED],
                answer_tokens=self._tokens[pb.PHASE_ANSWER],
            ),
            timings=pb.Timings(
                queue=wire.duration(self._queue_s),
                prefill=wire.duration(first_s - self._queue_s),
                first_token=wire.duration(first_s),
                first_answer_token=wire.duration(self._first_answer_s or first_s),
                total=wire.duration(self._elapsed_s()),
                decode_steps=max(0, self._steps - 1),
                mean_batch_size=1.0,
            ),
        )

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.received_s
