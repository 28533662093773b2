"""Curfew's own contracts: that of callers, through a controller, and that of workers."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Self

import grpc

from curfew.client import (
    ONCE,
    AsyncClient,
    AsyncStream,
    Code,
    Completion,
    CurfewError,
    Delta,
    Mode,
    Options,
    Phase,
    Plan,
    Sampling,
    Tls,
)
from curfew.client.connection import Connection
from curfew.conformance.target import Ask, RefusedError, Seen, TargetError
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

_MOST_REASONING = 1024
_WRONG = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)
_FINISHES = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class CallerTarget:
    """A controller, as a tenant that may think sees it."""

    has_budget = True
    has_unstreamed = False
    has_negative_budgets = False

    def __init__(self, address: str, key: str, tls: Tls | None = None) -> None:
        self._client = AsyncClient([address], key=key, tls=tls, retry=ONCE)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, ask: Ask) -> Seen:
        """One Generate."""
        texts, counts = dict.fromkeys(Phase, ""), dict.fromkeys(Phase, 0)
        again, grace, completion = False, 0, None
        try:
            async with self._stream(ask) as stream:
                async for event in stream:
                    match event:
                        case Plan():
                            grace = event.budget.grace_tokens
                        case Delta():
                            again |= event.phase is Phase.REASONING and bool(texts[Phase.ANSWER])
                            texts[event.phase] += event.text
                            counts[event.phase] += event.raw.token_count or len(event.token_ids)
                        case Completion():
                            completion = event
        except CurfewError as error:
            raise _failed(error) from None
        assert completion is not None
        usage = completion.usage
        return Seen(
            ask=ask,
            reasoning=texts[Phase.REASONING],
            answer=texts[Phase.ANSWER],
            finish=completion.finish_reason.name.lower(),
            reasoning_tokens=usage.reasoning_tokens,
            output_tokens=usage.output_tokens,
            streamed_tokens=counts[Phase.REASONING],
            grace_tokens=grace,
            reasoned_again=again,
        )

    async def leave(self, ask: Ask) -> None:
        """Cancels the call after its first piece."""
        try:
            async with self._stream(ask) as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        return
        except CurfewError as error:
            raise _failed(error) from None

    def _stream(self, ask: Ask) -> AsyncStream:
        options = Options(sampling=Sampling(temperature=0.0), max_answer_tokens=ask.answer_tokens)
        options["mode"] = Mode.NO_THINK if ask.budget == 0 else Mode.THINK
        if ask.budget:
            options["max_reasoning_tokens"] = ask.budget
        return self._client.generate(ask.text, **options)


class WorkerTarget:
    """A worker: Curfew's own engine, or one in front of another server."""

    has_budget = True
    has_unstreamed = False
    has_negative_budgets = False

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self._channel = Connection(address, "", tls).open_async(address)
        self._stub = WorkerServiceStub(self._channel)
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def ask(self, ask: Ask) -> Seen:
        """One Generate."""
        reasoning, answer, counted, again = "", "", 0, False
        completion: worker_pb2.WorkerCompletion | None = None
        call = self._stub.Generate(self._request(ask))
        try:
            async for response in call:
                if response.HasField("completion"):
                    completion = response.completion
                if not response.HasField("delta"):
                    continue
                delta = response.delta
                if delta.phase == pb.PHASE_REASONING:
                    again |= bool(answer)
                    reasoning += delta.text
                    counted += delta.token_count or len(delta.token_ids)
                else:
                    answer += delta.text
        except grpc.aio.AioRpcError as error:
            raise _failed_call(error) from None
        finally:
            call.cancel()
        if completion is None:
            raise TargetError("the stream ended without a completion")
        return Seen(
            ask=ask,
            reasoning=reasoning,
            answer=answer,
            finish=_FINISHES.get(completion.finish_reason, "other"),
            reasoning_tokens=completion.usage.reasoning_tokens,
            output_tokens=completion.usage.output_tokens,
            streamed_tokens=counted,
            reasoned_again=again,
        )

    async def leave(self, ask: Ask) -> None:
        """Cancels the call after its first piece."""
        call = self._stub.Generate(self._request(ask))
        try:
            async for response in call:
                if response.HasField("delta"):
                    return
        except grpc.aio.AioRpcError as error:
            raise _failed_call(error) from None
        finally:
            call.cancel()

    def _request(self, ask: Ask) -> worker_pb2.WorkerServiceGenerateRequest:
        budget = _MOST_REASONING if ask.budget is None else ask.budget
        return worker_pb2.WorkerServiceGenerateRequest(
            request_id=f"conformance-{id(self):x}-{next(self._numbers)}",
            messages=[pb.Message(role=pb.ROLE_USER, content=ask.text)],
            mode=pb.MODE_NO_THINK if budget == 0 else pb.MODE_THINK,
            budget=pb.Budget(reasoning_tokens=budget, answer_tokens=ask.answer_tokens),
            sampling=pb.SamplingParams(temperature=0.0),
        )


def _failed(error: CurfewError) -> Exception:
    if error.code in _WRONG:
        return RefusedError(str(error))
    return TargetError(str(error))


def _failed_call(error: grpc.aio.AioRpcError) -> Exception:
    text = f"{error.code().name}: {error.details()}"
    if error.code().name in {code.name for code in _WRONG}:
        return RefusedError(text)
    return TargetError(text)
