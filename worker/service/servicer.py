"""The worker's gRPC methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import grpc

from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, invalid, reason, retry_after
from curfew.v1 import worker_pb2 as pb
from curfew.v1.worker_pb2_grpc import WorkerServiceServicer
from worker.engine.build import Model
from worker.engine.closing import Closing
from worker.engine.engine import DuplicateError, QueueFullError, RefusedError, TooLargeError
from worker.engine.events import Event, Failed, FailureKind, Finished, Output, Started
from worker.service import wire
from worker.service.engine_thread import DeviceFailedError, EngineThread

_LOAD_EVERY_S = 0.1

GenerateRequest = pb.WorkerServiceGenerateRequest
GenerateResponse = pb.WorkerServiceGenerateResponse


@dataclass(frozen=True, slots=True)
class ServicerSettings:
    """flush_s: least time between two deltas of a stream, the first excepted; tokens that come meanwhile are
    merged.
    """

    flush_s: float = 0.005


class WorkerServicer(WorkerServiceServicer):
    """Carries requests to the engine and its events back."""

    def __init__(
        self,
        thread: EngineThread,
        model: Model,
        description: pb.DescribeWorkerResponse,
        settings: ServicerSettings,
        *,
        clock: Callable[[], float],
        random_seed: Callable[[], int],
    ) -> None:
        """description: everything about the worker but its load. clock: the engine's, in seconds."""
        self._thread, self._chat, self._description, self._settings = (
            thread,
            model.chat,
            description,
            settings,
        )
        self._clock, self._random_seed = clock, random_seed
        self._closing = Closing(model.chat.encode, model.chat.token_bytes)

    async def Generate(
        self, request: GenerateRequest, context: Context[GenerateRequest, GenerateResponse]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Streams one request. Whoever leaves the stream frees its slot before the next step."""
        now_s = self._clock()
        # Long prompts take a while to tokenise: not in the event loop.
        parsed = await asyncio.to_thread(
            wire.parse_request,
            request,
            self._chat,
            self._closing,
            random_seed=self._random_seed(),
            now_s=now_s,
        )
        try:
            mailbox = await self._thread.submit(parsed)
        except RefusedError as error:
            raise _refusal(error) from None
        except DeviceFailedError:
            raise RpcError(
                grpc.StatusCode.UNAVAILABLE, "the device has failed", reason("DEVICE_FAILED")
            ) from None
        except ValueError as error:
            raise invalid([("resume", str(error))]) from None
        load_due_s = 0.0
        flushed_s: float | None = None
        try:
            while True:
                await mailbox.arrived()
                if flushed_s is not None and not mailbox.over:
                    await asyncio.sleep(flushed_s + self._settings.flush_s - self._clock())
                events = mailbox.take()
                for response in (r for event in events for r in _responses(event)):
                    sent_s = self._clock()
                    if sent_s >= load_due_s or response.HasField("completion"):
                        response.load.CopyFrom(wire.load_message(self._thread.load))
                        load_due_s = sent_s + _LOAD_EVERY_S
                    if response.HasField("delta"):
                        flushed_s = sent_s
                    yield response
                if mailbox.over:
                    return
        finally:
            self._thread.cancel(request.request_id)

    async def AdjustBudget(
        self,
        request: pb.AdjustBudgetRequest,
        context: Context[pb.AdjustBudgetRequest, pb.AdjustBudgetResponse],
    ) -> pb.AdjustBudgetResponse:
        """Changes a running request's budget."""
        until_s = None
        if request.HasField("reason_until"):
            until_s = self._clock() + wire.seconds(request.reason_until)
        tokens = request.reasoning_tokens if request.HasField("reasoning_tokens") else None
        try:
            adjusted = await self._thread.adjust(request.request_id, tokens, until_s)
        except DeviceFailedError:
            raise RpcError(
                grpc.StatusCode.UNAVAILABLE, "the device has failed", reason("DEVICE_FAILED")
            ) from None
        if adjusted is None:
            raise RpcError(
                grpc.StatusCode.NOT_FOUND,
                f"request {request.request_id!r} does not run here",
                reason("REQUEST_NOT_RUNNING"),
            )
        limits, used = adjusted
        return pb.AdjustBudgetResponse(reasoning_tokens=limits.reasoning_tokens, used_reasoning_tokens=used)

    async def DescribeWorker(
        self,
        request: pb.DescribeWorkerRequest,
        context: Context[pb.DescribeWorkerRequest, pb.DescribeWorkerResponse],
    ) -> pb.DescribeWorkerResponse:
        """Model, limits, speed and load."""
        described = pb.DescribeWorkerResponse()
        described.CopyFrom(self._description)
        described.load.CopyFrom(wire.load_message(self._thread.load))
        return described


def _responses(event: Event) -> list[GenerateResponse]:
    match event:
        case Started():
            started = pb.GenerationStarted(
                prompt_tokens=event.prompt_tokens, queue=wire.duration(event.queue_s)
            )
            return [GenerateResponse(started=started)]
        case Output():
            return [GenerateResponse(sample=event.sample, delta=wire.delta(piece)) for piece in event.pieces]
        case Finished():
            return [GenerateResponse(sample=event.sample, completion=wire.completion(event))]
        case Failed(kind=FailureKind.DEVICE):
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "the device has failed", reason("DEVICE_FAILED"))
        case Failed():
            # The text of the failure is for the log, not for the caller.
            raise RuntimeError(f"request {event.request_id} failed: {event.why}")


def _refusal(error: RefusedError) -> RpcError:
    text = str(error)
    match error:
        case TooLargeError():
            return RpcError(grpc.StatusCode.OUT_OF_RANGE, text, reason("REQUEST_TOO_LARGE"))
        case QueueFullError():
            return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, text, reason("QUEUE_FULL"), retry_after(1.0))
        case DuplicateError():
            return RpcError(grpc.StatusCode.ALREADY_EXISTS, text, reason("REQUEST_ID_IN_USE"))
        case _:
            return RpcError(grpc.StatusCode.FAILED_PRECONDITION, text)
