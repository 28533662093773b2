"""Measures a running worker, so that a simulated one is like it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import grpc

from controller.planning.speed import DecodeCurve
from controller.simulation.speed import NOISE_STEPS, EngineDetails, SpeedError, speed_text
from curfew.rpc.durations import seconds
from curfew.v1 import generation_pb2, worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from curfew.v1.worker_pb2_grpc import WorkerServiceAsyncStub

QUESTION = "What is 12 + 37 + 45 + 81 + 9 + 66 + 23 + 54 + 98 + 30 + 17 + 72?"
"""One that takes some reasoning, of any model."""
REASONING_TOKENS = 96
ANSWER_TOKENS = 16
BATCHES = (1, 2, 4, 8, 1, 2, 4, 8)
"""Questions that are asked together, one batch after another. Of more, this process would measure itself."""
CPU_STEP_TOKENS, CPU_IDLE_STEP_TOKENS = 64, 512
"""Prompt tokens of a step that a worker takes by default on a CPU."""
SOME_RATIOS = 8
TIMEOUT_S = 60.0


async def record_speed(address: str) -> str:
    """A speed file of the worker at an address, which should have nothing else to do.

    Raises grpc.aio.AioRpcError, and SpeedError when its answers show no pace.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        stub = WorkerServiceStub(channel)
        description = await stub.DescribeWorker(worker_pb2.DescribeWorkerRequest(), timeout=TIMEOUT_S)
        streams = []
        for batch in (size for size in BATCHES if size <= description.limits.slots):
            together = (_stream(stub, f"speed-{time.time_ns()}-{i}") for i in range(batch))
            streams += [(batch, stream) for stream in await asyncio.gather(*together)]
    points = [(point.batch_size, seconds(point.step)) for point in description.speed.decode]
    curve = DecodeCurve.through(points)
    ratios = [
        ratio for batch, stream in streams for ratio in _ratios(stream, curve.step_s(batch)) if ratio > 0
    ]
    if len(ratios) < SOME_RATIOS:
        raise SpeedError("its answers were too short to show a pace")
    engine = replace(
        EngineDetails(),
        step_ratios=tuple(round(ratio, 4) for ratio in sorted(ratios)),
        relay_s=round(max(0.0, median(stream.latency_s - stream.total_s for _, stream in streams)), 6),
    )
    if description.device.startswith("cpu"):
        engine = replace(engine, step_tokens=CPU_STEP_TOKENS, idle_step_tokens=CPU_IDLE_STEP_TOKENS)
    return speed_text(description, engine)


@dataclass(frozen=True, slots=True)
class _Stream:
    """What a stream showed. tokens: (time, tokens so far) at each delta. total_s: by the worker's account."""

    tokens: list[tuple[float, int]]
    latency_s: float
    total_s: float


async def _stream(stub: WorkerServiceAsyncStub, request_id: str) -> _Stream:
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=[generation_pb2.Message(role=generation_pb2.ROLE_USER, content=QUESTION)],
        mode=generation_pb2.MODE_THINK,
        budget=generation_pb2.Budget(reasoning_tokens=REASONING_TOKENS, answer_tokens=ANSWER_TOKENS),
    )
    began_s, count, total_s = time.monotonic(), 0, 0.0
    tokens = []
    call = stub.Generate(request, timeout=TIMEOUT_S)
    try:
        async for response in call:
            if response.HasField("delta") and response.delta.phase != generation_pb2.PHASE_FORCED:
                count += len(response.delta.token_ids)
                tokens.append((time.monotonic(), count))
            elif response.HasField("completion"):
                total_s = seconds(response.completion.timings.total)
    finally:
        call.cancel()
    return _Stream(tokens, time.monotonic() - began_s, total_s)


def _ratios(stream: _Stream, step_s: float) -> list[float]:
    """Pace over that expected, of each `NOISE_STEPS` tokens; the first tokens wait for prompts of others."""
    marks = []
    wanted = NOISE_STEPS
    for when_s, count in stream.tokens:
        if count >= wanted:
            marks.append((when_s, count))
            wanted = count + NOISE_STEPS
    return [(b[0] - a[0]) / (b[1] - a[1]) / step_s for a, b in pairwise(marks)]
