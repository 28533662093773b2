"""A worker in front of a scripted server, served over real gRPC from the test's own event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from curfew.dialects import DIALECTS
from curfew.rpc.server import Server
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub, add_WorkerServiceServicer_to_server
from tests.openai_server import MODEL, OpenAiServer, Script, serving
from tests.worker.service.serving import Answer, ask
from worker.model.chat import Chat
from worker.service.door import SERVICE
from worker.service.servicer import ServicerSettings, WorkerServicer
from worker.upstream.backend import BackendSettings, UpstreamBackend
from worker.upstream.client import Upstream
from worker.upstream.wish import WishReader

if TYPE_CHECKING:
    from curfew.v1.worker_pb2_grpc import WorkerServiceAsyncStub

CHAT = Chat.load(MODEL)
REASONING, FORCED, ANSWER = pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER
__all__ = ["ANSWER", "CHAT", "FORCED", "REASONING", "Answer", "Worker", "ask", "fronting"]


@dataclass(slots=True)
class Worker:
    """A running worker, and what stands behind it."""

    server: OpenAiServer
    channel: grpc.aio.Channel
    stub: WorkerServiceAsyncStub
    backend: UpstreamBackend

    async def ask(self, request: worker_pb2.WorkerServiceGenerateRequest) -> Answer:
        """Runs a request to its end."""
        answer = Answer()
        async for response in self.stub.Generate(request):
            answer.take(response)
        return answer

    async def load(self) -> worker_pb2.WorkerLoad:
        return (await self.stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())).load


@asynccontextmanager
async def fronting(
    script: Script | None = None,
    *,
    dialect: str = "vllm",
    continuation: bool = False,
    slots: int = 4,
    queue: int = 4,
    switch_in_system: bool = False,
    url: str | None = None,
    key: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Worker]:
    """Serves while the context is open. continuation: that ends reasoning, not the server's budget."""
    chat = CHAT if continuation else None
    reader = WishReader(DIALECTS[dialect], "scripted", chat, 4.0, switch_in_system)
    with serving(script) as server:
        async with Upstream(url or server.url, key=key, silence_s=10.0) as upstream:
            backend = UpstreamBackend(
                upstream,
                reader.table,
                None if chat else 4.0,
                BackendSettings(slots, queue, 4096),
                clock,
            )
            door = Server(max_message_bytes=1 << 20)
            servicer = WorkerServicer(
                backend,
                reader,
                worker_pb2.DescribeWorkerResponse(),
                ServicerSettings(flush_s=0.0),
                clock=clock,
                random_seed=lambda: 7,
            )
            add_WorkerServiceServicer_to_server(servicer, door.grpc)
            address = await door.start("127.0.0.1:0", [SERVICE])
            await door.set_serving(True)
            async with grpc.aio.insecure_channel(address) as channel:
                yield Worker(server, channel, WorkerServiceStub(channel), backend)
            await door.drain(1.0)
            assert backend.load.running == backend.load.waiting == backend.load.backlog_tokens == 0
