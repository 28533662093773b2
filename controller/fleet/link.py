"""The connection to one worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2

from controller import wire
from controller.fleet.members import Member
from controller.fleet.silence import Silence
from controller.fleet.worker import Worker
from curfew.rpc.tls import Dialler
from curfew.telemetry.tracing import Headers
from curfew.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

POLL_S = 1.0
POLL_TIMEOUT_S = 2.0
ADJUST_TIMEOUT_S = 1.0
HUNG_S = 2.5
"""A worker of which nothing was heard for so long, neither on a stream nor in answer to a poll, is lost with
all that runs there. More than a poll and the time that a busy process may take to answer it.
"""
HUNG_STEPS = 10
"""And for so many of its steps."""
LOOK_S = 0.25
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


class Stream:
    """One request at a worker.

    Whoever reads `responses` closes this at the end. They end with CancelledError when the worker is lost
    though the connection stands, and `is_lost` tells that from a reader that was cancelled itself.
    """

    def __init__(self, call: GenerateCall, closed: Callable[[Stream], None]) -> None:
        self._call = call
        self.responses = aiter(call)
        self._closed = closed
        self._lost = False

    @property
    def is_lost(self) -> bool:
        """Whether it was given up, and the task that asks was not cancelled."""
        task = asyncio.current_task()
        return self._lost and (task is None or not task.cancelling())

    def give_up(self) -> None:
        """Nothing more is expected of the worker."""
        self._lost = True
        self._call.cancel()

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self._call.cancel()
        self._closed(self)


class Link:
    """Keeps a worker's state up to date over one channel, which connects again by itself.

    `changed` is called with the worker after everything that it said.
    """

    def __init__(
        self,
        worker: Worker,
        clock: Callable[[], float],
        changed: Callable[[Worker], None],
        dialler: Dialler,
    ) -> None:
        """dialler: opens the channel."""
        self.worker = worker
        self._clock = clock
        self._changed = changed
        self._dialler = dialler
        self._open()
        self._fault = ""
        self._was_available = False
        self._streams: set[Stream] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def _open(self) -> None:
        """Opens the channel. One before it goes with its last call."""
        self._version = self._dialler.version
        self._channel = self._dialler.open(self.worker.address)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._describe = stub.DescribeWorker
        self._generate = stub.Generate
        self._adjust = stub.AdjustBudget
        self._watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def start(self) -> None:
        """Begins to follow the worker."""
        following = (self._follow(), self._watch_health(), self._watch_silence())
        self._tasks = [asyncio.create_task(each) for each in following]

    def name(self, member: Member | None) -> None:
        """Who names the worker now; None when nobody does any more."""
        if member != self.worker.member:
            self.worker.member = member
            self._tell("it has left" if member is None else "it drains" if member.draining else "it is named")

    async def close(self) -> None:
        """Stops following and closes the channel."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, timeout_s: float | None, trace: Headers = ()
    ) -> Stream:
        """Sends a request, as a part of a trace. The caller of this must close the stream when it stops
        reading.
        """
        stream = Stream(self._generate(request, timeout=timeout_s, metadata=trace), self._streams.discard)
        self._streams.add(stream)
        return stream

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
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    self.lose(f"{error.code().name}: {error.details()}")
                    if self._dialler.version != self._version:
                        self._open()
            except Exception:  # of a description that nobody foresaw; the next may be better
                log.exception("worker %s cannot be followed", self.worker.address)
            await asyncio.sleep(POLL_S)

    async def _watch_silence(self) -> None:
        """Gives up a worker that hangs: its connection stands, and nothing comes."""
        silence = Silence(LOOK_S)
        while True:
            await asyncio.sleep(LOOK_S)
            worker = self.worker
            silent_s = silence.look(worker.heard_s, self._clock())
            step_s = wire.seconds(worker.reported.step)
            if silent_s > max(HUNG_S, HUNG_STEPS * step_s) and not worker.lost:
                self.lose(f"nothing was heard of it for {silent_s:.1f} s")
                for stream in self._streams:
                    stream.give_up()

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
