"""A worker without a model: `python -m benchmarks.proxy.worker` streams tokens at a given pace.

A token's text is the time at which it was sent, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncGenerator

from controller import wire
from curfew.rpc.calls import Context
from curfew.rpc.server import Server, on_signals
from curfew.v1 import generation_pb2, worker_pb2, worker_pb2_grpc

LOAD_EVERY_S = 0.1
"""As of the contract."""
MAX_MESSAGE_BYTES = 8 * 2**20

Response = worker_pb2.WorkerServiceGenerateResponse
GenerateContext = Context[worker_pb2.WorkerServiceGenerateRequest, Response]
AdjustContext = Context[worker_pb2.AdjustBudgetRequest, worker_pb2.AdjustBudgetResponse]
DescribeContext = Context[worker_pb2.DescribeWorkerRequest, worker_pb2.DescribeWorkerResponse]


class Worker(worker_pb2_grpc.WorkerServiceServicer):
    """Uses up every budget, and then the reserve for the answer."""

    def __init__(self, step_s: float, slots: int) -> None:
        self._step_s, self._slots = step_s, slots
        self._running = 0

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: GenerateContext
    ) -> AsyncGenerator[Response, None]:
        """Streams the budget's tokens, one a step, on a schedule that delays do not move."""
        began_s = told_s = time.monotonic()
        self._running += 1
        try:
            started = worker_pb2.GenerationStarted(prompt_tokens=20, queue=wire.duration(0.0))
            yield Response(started=started, load=self._load())
            budget = request.budget
            output = budget.reasoning_tokens + budget.answer_tokens
            for token in range(output):
                await asyncio.sleep(began_s + (token + 1) * self._step_s - time.monotonic())
                reasons = token < budget.reasoning_tokens
                phase = generation_pb2.PHASE_REASONING if reasons else generation_pb2.PHASE_ANSWER
                now_s = time.monotonic()
                response = Response(
                    delta=generation_pb2.Delta(phase=phase, text=f"{now_s:.6f} ", token_ids=[token])
                )
                if now_s - told_s >= LOAD_EVERY_S:
                    told_s = now_s
                    response.load.CopyFrom(self._load())
                yield response
        finally:
            self._running -= 1
        total_s = time.monotonic() - began_s
        completion = worker_pb2.WorkerCompletion(
            finish_reason=generation_pb2.FINISH_REASON_STOP,
            reasoning_end=generation_pb2.REASONING_END_BUDGET,
            usage=generation_pb2.TokenUsage(
                prompt_tokens=20,
                output_tokens=output,
                reasoning_tokens=budget.reasoning_tokens,
                answer_tokens=budget.answer_tokens,
            ),
            timings=generation_pb2.Timings(
                first_token=wire.duration(self._step_s),
                total=wire.duration(total_s),
                decode_steps=output - 1,
                mean_batch_size=self._running + 1,
            ),
        )
        yield Response(completion=completion, load=self._load())

    async def DescribeWorker(
        self, request: worker_pb2.DescribeWorkerRequest, context: DescribeContext
    ) -> worker_pb2.DescribeWorkerResponse:
        """A worker whose step takes as long as its pace says, whatever runs."""
        return worker_pb2.DescribeWorkerResponse(
            model="synthetic",
            limits=worker_pb2.WorkerLimits(max_sequence_tokens=32_768, slots=self._slots),
            speed=worker_pb2.WorkerSpeed(
                decode=[worker_pb2.DecodeSpeed(batch_size=1, step=wire.duration(self._step_s))],
                prefill_tokens_per_s=1e6,
            ),
            load=self._load(),
            bytes_per_token=4.0,
        )

    async def AdjustBudget(
        self, request: worker_pb2.AdjustBudgetRequest, context: AdjustContext
    ) -> worker_pb2.AdjustBudgetResponse:
        """Takes note of nothing: the streams of a benchmark are as long as they are."""
        return worker_pb2.AdjustBudgetResponse()

    def _load(self) -> worker_pb2.WorkerLoad:
        return worker_pb2.WorkerLoad(running=self._running, free_slots=self._slots - self._running)


async def serve(step_s: float, slots: int) -> None:
    """Serves on a free port until it is told to stop."""
    stop = asyncio.Event()
    server = Server(max_message_bytes=MAX_MESSAGE_BYTES)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Worker(step_s, slots), server.grpc)
    address = await server.start("127.0.0.1:0", ["curfew.v1.WorkerService"])
    await server.set_serving(True)
    with on_signals(stop.set):
        print(f"curfew worker ready: listen={address}", flush=True)
        await stop.wait()
    await server.drain(0.0)


def main() -> None:
    """Reads the pace, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--slots", type=int, default=256)
    args = parser.parse_args()
    asyncio.run(serve(args.step_s, args.slots))


if __name__ == "__main__":
    main()
