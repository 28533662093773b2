"""Serves one kind of request, whole or as a stream of server-sent events."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import grpc
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from controller.admission.identity import Caller
from controller.http.account import Json
from controller.http.body import read_body, while_connected
from controller.http.errors import ApiError, Renamed, api_error, malformed
from controller.http.fields import MAX_DEADLINE_MS, Asked
from controller.service.requests import Requests
from curfew.rpc.drain import Drain, shutting_down
from curfew.rpc.errors import RpcError, invalid, reason
from curfew.telemetry.tracing import trace_headers
from curfew.v1 import reasoning_pb2

log = logging.getLogger(__name__)

BODY_S = 30.0
"""In which a request's body must have come."""
DEADLINE_HEADER = "x-curfew-deadline-ms"

FormT = TypeVar("FormT", bound=Asked)


class Reply(Protocol):
    """An answer on its way."""

    def begin(self) -> Iterable[Json]:
        """What a stream begins with."""

    def take(self, event: reasoning_pb2.GenerateResponse) -> Iterable[Json]:
        """What an event makes of it."""

    def failed(self, error: Json) -> Iterable[Json]:
        """What a stream ends with that fails."""

    def whole(self) -> Json:
        """All of it, once every event was taken."""


@dataclass(frozen=True, slots=True)
class Dialect(Generic[FormT]):
    """What tells one kind of request from another.

    form: what comes. reply: makes the answer to it, by the plan and the Unix time. renamed: beginnings of the
    contract's field paths, as regular expressions, and what they are called here. named_events: whether the
    events of a stream are named by their `type`. done: the last data of a stream that did not fail.
    """

    form: type[FormT]
    reply: Callable[[FormT, reasoning_pb2.Plan, int], Reply]
    renamed: Sequence[tuple[str, str]]
    named_events: bool
    done: bytes


class Endpoint(Generic[FormT]):
    """An ASGI application for requests of one dialect."""

    def __init__(
        self,
        dialect: Dialect[FormT],
        requests: Requests,
        drain: Drain,
        unix_time: Callable[[], float],
        most_bytes: int,
    ) -> None:
        """most_bytes: of a request's body."""
        self._dialect = dialect
        self._requests = requests
        self._drain = drain
        self._unix_time = unix_time
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. It ends at once, and frees its slot, when the caller leaves."""
        request = Request(scope, receive)
        stream = EventStream(send, self._dialect.named_events)
        origin: Renamed = str
        reply: Reply | None = None
        try:
            if self._drain.begun:
                raise shutting_down()
            caller = caller_of(request)
            await self._requests.tenant(caller)
            form = self._form(await read_body(request, self._most_bytes, BODY_S))
            turns = form.turns()
            origin = turns.origin
            message = form.message(turns.messages, _deadline_ms(request))
            async with (
                self._drain.scope(),
                while_connected(receive),
                aclosing(self._requests.generate(message, caller)) as events,
            ):
                plan = (await anext(events)).plan
                reply = self._dialect.reply(form, plan, int(self._unix_time()))
                if form.stream:
                    # Until its first token a request may be refused: by a status, not inside a stream.
                    first = await anext(events)
                    await stream.begin(plan.request_id, reply.begin())
                    await stream.send(reply.take(first))
                    async for event in events:
                        await stream.send(reply.take(event))
                    await stream.end(self._dialect.done)
                else:
                    async for event in events:
                        for _ in reply.take(event):
                            pass
                    headers = {"x-request-id": plan.request_id}
                    await JSONResponse(reply.whole(), headers=headers)(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:  # the boundary to the wire
            failure = api_error(
                error if isinstance(error, RpcError) else _unforeseen(error),
                lambda path: self._renamed(origin(path)),
            )
            if reply is not None and stream.begun:
                await stream.send(reply.failed(failure.error))
                await stream.end()
            else:
                await respond(failure, scope, receive, send)

    def _renamed(self, path: str) -> str:
        for contract, api in self._dialect.renamed:
            path = re.sub(f"^{contract}", api, path)
        return path

    def _form(self, body: bytes) -> FormT:
        try:
            return self._dialect.form.model_validate_json(body)
        except ValidationError as error:
            raise malformed(error) from None


class EventStream:
    """Server-sent events to one caller."""

    def __init__(self, send: Send, named: bool) -> None:
        self._send = send
        self._named = named
        self.begun = False

    async def begin(self, request_id: str, events: Iterable[Json]) -> None:
        """Sends the headers and the first events."""
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            # A proxy that holds events back would make every deadline a lie.
            "x-accel-buffering": "no",
            "x-request-id": request_id,
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": encoded})
        await self.send(events)

    async def send(self, events: Iterable[Json]) -> None:
        """Sends events, and waits until there is room for more."""
        body = b"".join(map(self._frame, events))
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        """Sends what is last."""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def _frame(self, event: Json) -> bytes:
        name = f"event: {event['type']}\n" if self._named else ""
        return f"{name}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def respond(failure: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with an error."""
    await JSONResponse(failure.body, failure.status, failure.headers)(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Who calls. An HTTP request has no deadline of its own."""
    authorization = tuple(request.headers.getlist("authorization"))
    return Caller(authorization, lambda: None, trace_headers(request.headers.items()))


def _deadline_ms(request: Request) -> float | None:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    try:
        deadline_ms = float(text)
    except ValueError:
        deadline_ms = 0.0
    if not 0 < deadline_ms <= MAX_DEADLINE_MS:
        told = f"{text[:20]!r} is not a number of milliseconds above 0, to {MAX_DEADLINE_MS}"
        raise invalid([(DEADLINE_HEADER, told)])
    return deadline_ms


def _unforeseen(error: Exception) -> RpcError:
    """Its text is for the log alone."""
    log.error("unforeseen error in a request", exc_info=error)
    return RpcError(grpc.StatusCode.INTERNAL, "internal error", reason("INTERNAL"))
