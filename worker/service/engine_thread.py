"""Runs the engine in a thread of its own, so that no step ever holds up the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from worker.engine.engine import Engine
from worker.engine.events import Event, Failed, FailureKind, Load
from worker.engine.generation import Limits
from worker.engine.sequence import Request
from worker.service.mailbox import Mailbox

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DeviceFailedError(Exception):
    """The device has failed; the worker takes nothing more."""


class EngineThread:
    """Steps an engine while there is work, and carries calls to it and events from it.

    Its methods belong to the event loop that made it; the engine is touched in the thread alone.
    """

    def __init__(self, engine: Engine, on_device_failure: Callable[[], None]) -> None:
        """on_device_failure: called once in the event loop when a step fails. Every request has failed
        then.
        """
        self._engine, self._on_device_failure = engine, on_device_failure
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._mailboxes: dict[str, Mailbox] = {}
        self._load = engine.load()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the step under way."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def load(self) -> Load:
        """The engine's load after its last step."""
        return self._load

    @property
    def failed(self) -> bool:
        """Whether the device has failed."""
        return self._failed

    async def submit(self, request: Request) -> Mailbox:
        """Hands a request to the engine. Raises what Engine.submit raises, and DeviceFailedError."""
        if request.request_id in self._mailboxes:
            # Refused here already, so that the running request keeps its mailbox.
            await self._call(lambda: self._engine.submit(request))
        mailbox = self._mailboxes[request.request_id] = Mailbox(request.samples)
        try:
            await self._call(lambda: self._engine.submit(request))
        except asyncio.CancelledError:
            self.cancel(request.request_id)
            raise
        except Exception:
            del self._mailboxes[request.request_id]
            raise
        return mailbox

    def cancel(self, request_id: str) -> None:
        """Ends a request before the next step, and forgets it."""
        if self._mailboxes.pop(request_id, None) is not None:
            self._calls.put(lambda: self._engine.cancel(request_id))

    async def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> tuple[Limits, int] | None:
        """Changes a request's limits: those in force, and the reasoning tokens used. None if it does not
        run.
        """

        def adjust() -> tuple[Limits, int] | None:
            limits = self._engine.adjust(request_id, reasoning_tokens, reason_until_s)
            return None if limits is None else (limits, self._engine.reasoning_tokens(request_id))

        return await self._call(adjust)

    async def _call(self, function: Callable[[], T]) -> T:
        """Runs a function in the engine's thread, between two steps."""
        if self._failed:
            raise DeviceFailedError("the device has failed")
        answer: asyncio.Future[T] = self._loop.create_future()

        def call() -> None:
            try:
                result = function()
            except Exception as error:  # handed to the caller
                self._loop.call_soon_threadsafe(_fail, answer, error)
            else:
                self._loop.call_soon_threadsafe(_fulfil, answer, result)

        self._calls.put(call)
        return await answer

    def _run(self) -> None:
        """The thread: waits for calls while idle, else alternates between calls and steps."""
        engine = self._engine
        while True:
            while engine.idle or not self._calls.empty():
                call = self._calls.get()
                if call is None:
                    return
                call()
            try:
                events = engine.step()
            except Exception as error:  # the device: nothing can be computed any more
                logger.critical("a step failed; no more requests are taken", exc_info=error)
                self._loop.call_soon_threadsafe(self._fail_all, f"{type(error).__name__}: {error}")
                return
            self._loop.call_soon_threadsafe(self._deliver, events, engine.load())

    def _deliver(self, events: list[Event], load: Load) -> None:
        self._load = load
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is not None:
                mailbox.put(event)
                if mailbox.over:
                    del self._mailboxes[event.request_id]

    def _fail_all(self, why: str) -> None:
        self._failed = True
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(Failed(request_id, FailureKind.DEVICE, why))
        self._mailboxes.clear()
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None:
                call()
        self._on_device_failure()


def _fulfil(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[T], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
