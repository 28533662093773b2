"""The connection to one worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2

from controller import wire
from controller.fleet.worker import Worker
from curfew.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

POLL_S = 1.0
POLL_TIMEOUT_S = 2.0
ADJUST_TIMEOUT_S = 1.0
SILENCE_S = 3.0
"""After so long without a word a worker is lost; more than a poll that timed out and the next."""
WATCH_AGAIN_S = 0.25
MAX_MESSAGE_BYTES = 16 * 2**20

SERVING = health_pb2.HealthCheckResponse.SERVING

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

GenerateCall = grpc.aio.UnaryStreamCall[
    worker_pb2.WorkerServiceGenerateRequest, worker_pb2.WorkerServiceGenerateResponse
]


class Link:
    """Keeps a worker's state up to date over one channel, which connects again by itself.

    `changed` is called with the worker after everything that it said.
    """

    def __init__(self, worker: Worker, clock: Callable[[], float], changed: Callable[[Worker], None]) -> None:
        self.worker = worker
        self._clock = clock
        self._changed = changed
        self._channel = grpc.aio.insecure_channel(worker.address, options=CHANNEL_OPTIONS)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._describe = stub.DescribeWorker
        self._generate = stub.Generate
        self._adjust = stub.AdjustBudget
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._fault = ""
        self._was_available = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to follow the worker."""
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._watch_health())]

    async def close(self) -> None:
        """Stops following and closes the channel."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, timeout_s: float | None
    ) -> GenerateCall:
        """Sends a request. The caller of this owns the call and must cancel it when it stops reading."""
        return self._generate(request, timeout=timeout_s)

    async def adjust(self, request_id: str, reason_for_s: float | None, reasoning_tokens: int | None) -> int:
        """Changes when a running request's reasoning must end, in seconds from now, and its budget; None
        leaves either. Returns the budget in force. Raises AioRpcError.
        """
        change = worker_pb2.AdjustBudgetRequest(request_id=request_id, reasoning_tokens=reasoning_tokens)
        if reason_for_s is not None:
            change.reason_until.CopyFrom(wire.duration(reason_for_s))
        return (await self._adjust(change, timeout=ADJUST_TIMEOUT_S)).reasoning_tokens

    def lose(self, why: str) -> None:
        """Stops choosing the worker until it is heard of again."""
        self.worker.lose()
        self._tell(why)

    def _tell(self, why: str) -> None:
        """Hands on that something changed; logs it when that makes the worker available, or no longer."""
        if self.worker.available != self._was_available:
            self._was_available = self.worker.available
            level = logging.INFO if self._was_available else logging.WARNING
            state = "available" if self._was_available else "not available"
            log.log(level, "worker %s is %s: %s", self.worker.address, state, why)
        self._changed(self.worker)

    async def _follow(self) -> None:
        """Asks for the description again and again."""
        while True:
            try:
                description = await self._describe(worker_pb2.DescribeWorkerRequest(), timeout=POLL_TIMEOUT_S)
                self._take(description)
            except grpc.aio.AioRpcError as error:
                silent_s = self._clock() - self.worker.heard_s
                if error.code() is grpc.StatusCode.UNAVAILABLE or silent_s > SILENCE_S:
                    self.lose(f"{error.code().name}: {error.details()}")
            except Exception:  # of a description that nobody foresaw; the next may be better
                log.exception("worker %s cannot be followed", self.worker.address)
            await asyncio.sleep(POLL_S)

    def _take(self, description: worker_pb2.DescribeWorkerResponse) -> None:
        fault = ""
        try:
            self.worker.take_description(description, self._clock())
        except ValueError as error:
            fault = str(error)
            if fault != self._fault:
                log.error("worker %s cannot be used: %s", self.worker.address, fault)
        self._fault = fault
        self._tell(fault or f"model {description.model}")

    async def _watch_health(self) -> None:
        """Follows the health service; a worker that has none is taken to be well, as gRPC's own clients do.

        The watch of a worker that is not well is begun again and again: one kept open would hold up its end.
        """
        while True:
            call = self._watch(health_pb2.HealthCheckRequest())
            healthy = False
            try:
                async for response in call:
                    healthy = response.status == SERVING
                    self._set_healthy(healthy)
                    if not healthy:
                        break
            except grpc.aio.AioRpcError as error:
                healthy = error.code() is grpc.StatusCode.UNIMPLEMENTED
            finally:
                call.cancel()
            self._set_healthy(healthy)
            await asyncio.sleep(POLL_S if healthy else WATCH_AGAIN_S)

    def _set_healthy(self, healthy: bool) -> None:
        if healthy != self.worker.healthy:
            self.worker.healthy = healthy
            self._tell("its health says so")
