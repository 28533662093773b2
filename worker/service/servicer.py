"""The worker's gRPC methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest

from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, invalid, reason, retry_after
from curfew.v1 import worker_pb2 as pb
from curfew.v1.worker_pb2_grpc import WorkerServiceServicer
from worker.engine.events import Event, Failed, FailureKind, Finished, Output, Started
from worker.engine.refusals import DuplicateError, QueueFullError, RefusedError, TooLargeError
from worker.service import responses
from worker.service.backend import Backend, DeviceFailedError, R, Reader
from worker.service.checks import read_adjustment
from worker.service.mailbox import Mailbox

_LOAD_EVERY_S = 0.1
_RETRY_S = 1.0

_REFUSALS = {
    TooLargeError: (grpc.StatusCode.OUT_OF_RANGE, "REQUEST_TOO_LARGE"),
    QueueFullError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    DuplicateError: (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE"),
}

GenerateRequest = pb.WorkerServiceGenerateRequest
GenerateResponse = pb.WorkerServiceGenerateResponse


@dataclass(frozen=True, slots=True)
class ServicerSettings:
    """flush_s: least time between two deltas of a stream, the first excepted; tokens that come meanwhile are
    merged.
    """

    flush_s: float


class WorkerServicer(WorkerServiceServicer, Generic[R]):
    """Carries requests to what runs them and its events back."""

    def __init__(
        self,
        backend: Backend[R],
        reader: Reader[R],
        description: pb.DescribeWorkerResponse,
        settings: ServicerSettings,
        *,
        clock: Callable[[], float],
        random_seed: Callable[[], int],
    ) -> None:
        """description: everything about the worker but its load. clock: the backend's, in seconds.
        random_seed: for requests that name none.
        """
        self._backend, self._reader, self._description = backend, reader, description
        self._settings, self._clock, self._random_seed = settings, clock, random_seed

    async def Generate(
        self, request: GenerateRequest, context: Context[GenerateRequest, GenerateResponse]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Streams one request. Whoever leaves the stream frees its slot before the next step."""
        # A long prompt takes a while to encode: not in the event loop.
        read = await asyncio.to_thread(
            self._reader.read, request, random_seed=self._random_seed(), now_s=self._clock()
        )
        try:
            mailbox = await self._backend.submit(read)
        except RefusedError as error:
            raise _refusal(error, read.limits.reserve_tokens) from None
        except DeviceFailedError:
            raise _device_failed() from None
        except ValueError as error:
            # All else was checked when the request was read.
            raise invalid([("resume", str(error))]) from None
        try:
            async for response in self._responses(mailbox, read.sampling.seed):
                yield response
        finally:
            self._backend.cancel(mailbox)

    async def AdjustBudget(
        self,
        request: pb.AdjustBudgetRequest,
        context: Context[pb.AdjustBudgetRequest, pb.AdjustBudgetResponse],
    ) -> pb.AdjustBudgetResponse:
        """Changes a running request's budget."""
        tokens, until_s = read_adjustment(request, self._clock())
        try:
            adjusted = await self._backend.adjust(request.request_id, tokens, until_s)
        except DeviceFailedError:
            raise _device_failed() from None
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
        try:
            described.load.CopyFrom(responses.load(await self._backend.fresh_load()))
        except DeviceFailedError:
            raise _device_failed() from None
        return described

    async def _responses(self, mailbox: Mailbox, seed: int) -> AsyncGenerator[GenerateResponse, None]:
        """What a mailbox brings, to its end, no more often than is worth a message."""
        load_due_s = flush_due_s = self._clock()
        while not mailbox.exhausted:
            await mailbox.arrived()
            await mailbox.complete_within(flush_due_s - self._clock())
            for response in (r for event in mailbox.take() for r in _told(event, seed)):
                now_s = self._clock()
                if now_s >= load_due_s or response.HasField("completion"):
                    response.load.CopyFrom(responses.load(self._backend.load))
                    load_due_s = now_s + _LOAD_EVERY_S
                if response.HasField("delta"):
                    flush_due_s = now_s + self._settings.flush_s
                yield response


def _told(event: Event, seed: int) -> Iterator[GenerateResponse]:
    match event:
        case Started():
            yield GenerateResponse(started=responses.started(event, seed))
        case Output():
            strike = None if event.strike is None else responses.strike(event.strike)
            for piece in event.pieces:
                yield GenerateResponse(sample=event.sample, delta=responses.delta(piece), strike=strike)
        case Finished():
            yield GenerateResponse(sample=event.sample, completion=responses.completion(event))
        case Failed(kind=FailureKind.DEVICE):
            raise _device_failed()
        case Failed(told=Exception() as error):
            raise error
        case Failed():
            # Its text is for the log, not for the caller.
            raise RuntimeError(f"request {event.request_id!r} failed: {event.why}")


def _device_failed() -> RpcError:
    return RpcError(grpc.StatusCode.UNAVAILABLE, "the device has failed", reason("DEVICE_FAILED"))


def _refusal(error: RefusedError, reserve_tokens: int) -> RpcError:
    code, name = _REFUSALS[type(error)]
    hints: list[Message] = []
    if isinstance(error, QueueFullError):
        hints.append(retry_after(_RETRY_S))
    if isinstance(error, TooLargeError) and reserve_tokens:
        violation = BadRequest.FieldViolation(field="reserve_reasoning_tokens", description=str(error))
        hints.append(BadRequest(field_violations=[violation]))
    return RpcError(code, str(error), *hints, reason(name, **error.numbers))
