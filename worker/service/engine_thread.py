"""Runs the engine in a thread of its own, so that no step ever holds up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from worker.engine.engine import Engine
from worker.engine.events import Event, Failed, FailureKind, Load
from worker.engine.generation import Limits
from worker.engine.refusals import DuplicateError
from worker.engine.sequence import Request
from worker.service.backend import DeviceFailedError
from worker.service.mailbox import Mailbox

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A prompt as long as this doubles the time that a step may take.
_LONG_PROMPT_TOKENS = 32768
# What the thread is asked to do; without an engine when it has failed.
Call = Callable[[Engine | None], None]


class EngineThread:
    """Steps an engine while there is work, and carries calls to it and events from it.

    Its methods belong to the event loop that made it; the engine is touched in the thread alone.
    """

    def __init__(
        self,
        engine: Engine,
        on_failure: Callable[[], None],
        *,
        step_limit_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_failure: called once, in the event loop, when a step has failed and every request with it.

        step_limit_s: a step that takes longer has failed too, since a device may also fail by never coming
        back; see `_limit_s`. clock: monotonic, in seconds.
        """
        self._engine, self._on_failure = engine, on_failure
        self._step_limit_s, self._clock = step_limit_s, clock
        self._step_began_s: float | None = None
        """Written by the thread alone. None between steps."""
        self._watch: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._mailboxes: dict[str, Mailbox] = {}
        """Of requests that the engine holds, or will when it has come to the calls that wait."""
        self._load = engine.load()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()
        self._watch = asyncio.create_task(self._watch_steps())

    async def stop(self) -> None:
        """Ends the thread after the step under way, unless that has taken too long: it may never end."""
        if self._watch is not None:
            self._watch.cancel()
        self._calls.put(None)
        if not (self._failed and self._overdue):
            await asyncio.to_thread(self._thread.join)

    @property
    def failed(self) -> bool:
        """Whether the device has failed."""
        return self._failed

    @property
    def load(self) -> Load:
        """The engine's load after its last step or call."""
        return self._load

    async def fresh_load(self) -> Load:
        """The load now if the engine is idle, else the last one known: nobody waits for a step to end.

        Raises DeviceFailedError.
        """
        if self._load.running or self._load.waiting:
            return self._load
        return await self._call(Engine.load)

    async def submit(self, request: Request) -> Mailbox:
        """Hands a request to the engine. Raises what Engine.submit raises, and DeviceFailedError."""
        request_id = request.request_id
        if request_id in self._mailboxes:
            raise DuplicateError(f"request {request_id!r} is running already")
        mailbox = self._mailboxes[request_id] = Mailbox(request_id, request.samples)
        try:
            await self._call(lambda engine: engine.submit(request))
        except BaseException:
            self.cancel(mailbox)
            raise
        return mailbox

    def cancel(self, mailbox: Mailbox) -> None:
        """Ends a request before the next step. One that is over is left alone, and so is another that has
        taken its id since.
        """
        request_id = mailbox.request_id
        if self._mailboxes.get(request_id) is not mailbox:
            return
        del self._mailboxes[request_id]

        def call(engine: Engine | None) -> None:
            if engine is not None:
                engine.cancel(request_id)

        self._calls.put(call)

    async def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> tuple[Limits, int] | None:
        """Changes a request's limits: those in force, and the reasoning tokens used. None if it does not
        run. Raises DeviceFailedError.
        """

        def adjust(engine: Engine) -> tuple[Limits, int] | None:
            limits = engine.adjust(request_id, reasoning_tokens, reason_until_s)
            return None if limits is None else (limits, engine.reasoning_tokens(request_id))

        return await self._call(adjust)

    async def _call(self, function: Callable[[Engine], T]) -> T:
        """Runs a function in the thread, between two steps. What it raises is the caller's."""
        answer: Future[T] = Future()

        def call(engine: Engine | None) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                if engine is None:
                    raise DeviceFailedError("the device has failed")
                answer.set_result(function(engine))
            except Exception as error:  # handed to the caller
                answer.set_exception(error)

        if self._failed:
            raise DeviceFailedError("the device has failed")
        self._calls.put(call)
        return await asyncio.wrap_future(answer)

    # In the thread.

    def _run(self) -> None:
        try:
            while self._make_calls():
                self._step_began_s = self._clock()
                events = self._engine.step()
                self._step_began_s = None
                if self._failed:  # given up meanwhile, and all its requests with it
                    return
                self._post(self._deliver, events, self._engine.load())
        except Exception as error:  # nothing can be computed any more
            logger.critical("the device has failed; no more requests are taken", exc_info=error)
            self._post(self._fail)
            while (call := self._calls.get()) is not None:
                call(None)

    def _make_calls(self) -> bool:
        """Makes the calls that wait, and waits for more while the engine is idle. False when told to end."""
        engine = self._engine
        while engine.idle or not self._calls.empty():
            call = self._calls.get()
            if call is None:
                return False
            call(engine)
            # A step that tells the load may take long, or not come at all.
            self._post(self._deliver, (), engine.load())
        return True

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    # In the event loop, called by the thread.

    def _deliver(self, events: Sequence[Event], load: Load) -> None:
        self._load = load
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is not None:
                mailbox.put(event)
                if mailbox.complete:
                    del self._mailboxes[event.request_id]

    async def _watch_steps(self) -> None:
        """Gives up the device when a step does not come back."""
        while not self._overdue:  # noqa: ASYNC110  # nothing happens that could set an event
            await asyncio.sleep(self._step_limit_s / 8)
        logger.critical(
            "a step has taken more than %.0f s; the device is given up and no more requests are taken",
            self._limit_s,
        )
        self._fail()
        with contextlib.suppress(queue.Empty):
            while (call := self._calls.get_nowait()) is not None:  # the thread will not come to it
                call(None)

    @property
    def _limit_s(self) -> float:
        """What a step may take: attention to a long past takes its time."""
        return self._step_limit_s * (1 + self._load.backlog_tokens / _LONG_PROMPT_TOKENS)

    @property
    def _overdue(self) -> bool:
        began_s = self._step_began_s
        return began_s is not None and self._clock() - began_s > self._limit_s

    def _fail(self) -> None:
        if self._failed:
            return
        self._failed = True
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(Failed(request_id, FailureKind.DEVICE, "the device has failed"))
        self._mailboxes.clear()
        self._on_failure()
