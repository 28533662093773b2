"""A worker with quantised weights says so, and answers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

import grpc
import pytest

from curfew.processes import start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

DEMO_MODEL = Path(__file__).parents[3] / "demo" / "model"


@pytest.mark.parametrize(("weights", "said"), [("full", "float32"), ("int8", "float32, int8 weights")])
async def test_a_worker_says_how_its_weights_are_held_and_answers(weights: str, said: str) -> None:
    arguments = ["--model", str(DEMO_MODEL), "--listen", "127.0.0.1:0", "--weights", weights]
    with TemporaryFile() as log:
        worker = await start_service("worker", arguments, log=log)
        try:
            async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
                stub = WorkerServiceStub(channel)
                described = await stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())
                request = worker_pb2.WorkerServiceGenerateRequest(
                    request_id="sum",
                    messages=[pb.Message(role=pb.ROLE_USER, content="What is 12 + 37 + 45?")],
                    mode=pb.MODE_THINK,
                    budget=pb.Budget(reasoning_tokens=96, grace_tokens=12, answer_tokens=12),
                    sampling=pb.SamplingParams(temperature=0),
                )
                answer = ""
                async for response in stub.Generate(request):
                    if response.delta.phase == pb.PHASE_ANSWER:
                        answer += response.delta.text
        finally:
            await worker.stop()
    assert described.dtype == said
    assert "94" in answer
