"""Simulated workers behind real gRPC, each at its own address: `python -m benchmarks.scale.workers --count N`

The engine is the simulator's (`controller.simulation.worker`), on the clock of the event loop. Its tokens
have no text, and come together as often as a worker tells its load.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from random import Random

import grpc

from controller import wire
from controller.planning.speed import Load
from controller.simulation.job import Done, Grant, Job, Nature
from controller.simulation.speed import PRESETS, WorkerModel
from controller.simulation.trace import ReasoningEnd
from controller.simulation.worker import QueueFullError, SimulatedWorker
from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, retry_after
from curfew.rpc.server import Server, on_signals
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2, worker_pb2_grpc

MAX_MESSAGE_BYTES = 8 * 2**20
REASONING_TOKENS, ANSWER_TOKENS = 64, 8
"""What a request does if nobody limits it."""
CLOSING_TOKENS = 5
END = {
    ReasoningEnd.NONE: pb.REASONING_END_NONE,
    ReasoningEnd.NATURAL: pb.REASONING_END_NATURAL,
    ReasoningEnd.BUDGET: pb.REASONING_END_BUDGET,
    ReasoningEnd.DEADLINE: pb.REASONING_END_DEADLINE,
}

Request = worker_pb2.WorkerServiceGenerateRequest
Response = worker_pb2.WorkerServiceGenerateResponse


class SimulatedService(worker_pb2_grpc.WorkerServiceServicer):
    """One worker. Also the listener of its engine."""

    def __init__(self, model: WorkerModel, seed: int) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._engine = SimulatedWorker(model, self._at, self, Random(seed))
        self._responses: dict[Job, asyncio.Queue[Response]] = {}
        self._told: dict[Job, int] = {}
        self._running: dict[str, Job] = {}

    async def Generate(
        self, request: Request, context: Context[Request, Response]
    ) -> AsyncGenerator[Response, None]:
        """Streams what the engine does with a request."""
        budget, now_s = request.budget, self._loop.time()
        until_s = math.inf
        if budget.HasField("reason_until"):
            until_s = now_s + wire.seconds(budget.reason_until)
        grant = Grant(
            budget_tokens=budget.reasoning_tokens,
            grace_tokens=budget.grace_tokens,
            answer_tokens=budget.answer_tokens,
            reason_until_s=until_s,
            priority=request.priority,
            deadline_s=now_s + wire.seconds(request.deadline) if request.HasField("deadline") else math.inf,
            reserve_tokens=request.reserve_reasoning_tokens,
        )
        prompt_tokens = sum(len(turn.content) // 4 + 8 for turn in request.messages)
        job = Job(Nature(prompt_tokens, REASONING_TOKENS, ANSWER_TOKENS, 0), grant, CLOSING_TOKENS)
        responses = self._responses[job] = asyncio.Queue()
        self._told[job], self._running[request.request_id] = 0, job
        finished = False
        try:
            self._engine.submit(job, now_s)
            while not finished:
                response = await responses.get()
                finished = response.HasField("completion")
                yield response
        except QueueFullError:
            raise RpcError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry_after(1.0)
            ) from None
        finally:
            del self._responses[job], self._told[job], self._running[request.request_id]
            if not finished:
                self._engine.cancel(job, self._loop.time())

    async def DescribeWorker(
        self,
        request: worker_pb2.DescribeWorkerRequest,
        context: Context[worker_pb2.DescribeWorkerRequest, worker_pb2.DescribeWorkerResponse],
    ) -> worker_pb2.DescribeWorkerResponse:
        """As the model describes itself, with its load."""
        described = self._model.description()
        described.load.CopyFrom(_load(self._engine.load))
        return described

    async def AdjustBudget(
        self,
        request: worker_pb2.AdjustBudgetRequest,
        context: Context[worker_pb2.AdjustBudgetRequest, worker_pb2.AdjustBudgetResponse],
    ) -> worker_pb2.AdjustBudgetResponse:
        """Changes a running request's limits, from the next step on."""
        job = self._running.get(request.request_id)
        if job is None:
            raise RpcError(grpc.StatusCode.NOT_FOUND, "does not run here")
        now_s = self._loop.time()
        until_s, tokens = None, None
        if request.HasField("reason_until"):
            until_s = now_s + wire.seconds(request.reason_until)
        if request.HasField("reasoning_tokens"):
            tokens = request.reasoning_tokens
        self._engine.adjust(job, tokens, until_s, now_s)
        return worker_pb2.AdjustBudgetResponse(
            reasoning_tokens=job.budget_tokens if tokens is None else tokens
        )

    # What the engine tells.

    def started(self, job: Job, load: Load, now_s: float) -> None:
        """See `controller.simulation.worker.Listener`."""
        started = worker_pb2.GenerationStarted(
            prompt_tokens=job.nature.prompt_tokens, queue=wire.duration(now_s - job.received_s)
        )
        self._tell(job, Response(started=started, load=_load(load)))

    def reasoned(self, tokens: list[tuple[Job, int]], load: Load, now_s: float) -> None:
        """See `Listener`."""
        for job, count in tokens:
            self._tokens(job, pb.PHASE_REASONING, count)

    def answered(self, job: Job, now_s: float) -> None:
        """See `Listener`."""
        self._tokens(job, pb.PHASE_ANSWER, self._told[job] + 1)

    def finished(self, job: Job, done: Done, load: Load, now_s: float) -> None:
        """See `Listener`."""
        self._tokens(job, pb.PHASE_ANSWER, done.reasoning_tokens + done.forced_tokens + done.answer_tokens)
        usage = pb.TokenUsage(
            prompt_tokens=done.prompt_tokens,
            output_tokens=done.reasoning_tokens + done.forced_tokens + done.answer_tokens,
            reasoning_tokens=done.reasoning_tokens,
            forced_tokens=done.forced_tokens,
            answer_tokens=done.answer_tokens,
        )
        timings = pb.Timings(
            queue=wire.duration(done.queue_s),
            first_token=wire.duration(done.first_token_s),
            first_answer_token=wire.duration(done.first_answer_s),
            total=wire.duration(done.total_s),
            decode_steps=done.decode_steps,
            mean_batch_size=done.mean_batch_size,
        )
        completion = worker_pb2.WorkerCompletion(
            finish_reason=pb.FINISH_REASON_STOP,
            reasoning_end=END[done.reasoning_end],
            usage=usage,
            timings=timings,
        )
        self._tell(job, Response(completion=completion, load=_load(load)))

    def _tokens(self, job: Job, phase: pb.Phase.ValueType, so_far: int) -> None:
        """A delta of those that were not told yet."""
        new = so_far - self._told[job]
        if new > 0:
            self._told[job] = so_far
            self._tell(job, Response(delta=pb.Delta(phase=phase, token_ids=[1] * new)))

    def _tell(self, job: Job, response: Response) -> None:
        responses = self._responses.get(job)
        if responses is not None:
            responses.put_nowait(response)

    def _at(self, when_s: float, happen: Callable[[float], None]) -> None:
        self._loop.call_at(when_s, happen, when_s)


def _load(load: Load) -> worker_pb2.WorkerLoad:
    return worker_pb2.WorkerLoad(
        running=load.running,
        waiting=load.waiting,
        prefill_backlog_tokens=load.prefill_backlog_tokens,
        free_slots=load.free_slots,
    )


async def serve(count: int, model: WorkerModel) -> None:
    """Serves at free ports until it is told to stop."""
    stop = asyncio.Event()
    servers, addresses = [], []
    for number in range(count):
        server = Server(max_message_bytes=MAX_MESSAGE_BYTES)
        service = SimulatedService(model, number)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server.grpc)
        addresses.append(await server.start("127.0.0.1:0", ["curfew.v1.WorkerService"]))
        await server.set_serving(True)
        servers.append(server)
    with on_signals(stop.set):
        print(f"curfew workers ready: listen={','.join(addresses)}", flush=True)
        await stop.wait()
    for server in servers:
        await server.drain(0.0)


def main() -> None:
    """Reads how many, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, required=True, help="workers")
    parser.add_argument("--speed", choices=list(PRESETS), default="9b-h200", help="(%(default)s)")
    parser.add_argument("--slots", type=int, help="of each (those of the speed)")
    options = parser.parse_args()
    model = PRESETS[options.speed]
    asyncio.run(serve(options.count, replace(model, slots=options.slots or model.slots)))


if __name__ == "__main__":
    main()
