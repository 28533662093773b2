"""Runs requests on the server: so many at a time, the others in line; and knows the load that this makes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curfew.rpc.errors import RpcError
from worker.engine.events import Event, Failed, FailureKind, Load, Output
from worker.engine.generation import Limits
from worker.engine.meter import Meter
from worker.engine.refusals import DuplicateError, QueueFullError, TooLargeError
from worker.service.mailbox import Mailbox
from worker.upstream.client import Upstream
from worker.upstream.generation import Generation
from worker.upstream.wish import Wish


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """slots: requests that run together. queue: that may wait. max_sequence_tokens: of one."""

    slots: int
    queue: int
    max_sequence_tokens: int


@dataclass(slots=True, eq=False)
class _Run:
    """A request that waits or runs. unread_tokens: of its prompt, until the first token has come."""

    mailbox: Mailbox
    generation: Generation
    task: asyncio.Task[None]
    unread_tokens: int


class UpstreamBackend:
    """The `Backend` of a worker in front of another server. Belongs to one event loop."""

    def __init__(
        self,
        server: Upstream,
        table: Sequence[bytes],
        bytes_per_token: float | None,
        settings: BackendSettings,
        clock: Callable[[], float],
    ) -> None:
        """table, bytes_per_token: see `Generation`."""
        self._server, self._table, self._bytes_per_token = server, table, bytes_per_token
        self._settings, self._clock = settings, clock
        self._runs: dict[str, _Run] = {}
        self._line = _Line(settings.slots)
        self._meter = Meter()
        self._backlog_tokens = 0

    @property
    def running(self) -> int:
        """Requests that the server has."""
        return self._line.taken

    @property
    def load(self) -> Load:
        """Now: everything happens in this event loop."""
        slots = self._settings.slots
        return Load(
            running=self.running,
            waiting=self._line.waiting,
            backlog_tokens=self._backlog_tokens,
            free_slots=slots - self.running,
            free_pages=0,
            step_s=self._meter.step_s,
            tokens_per_s=self._meter.tokens_per_s(self._clock()),
        )

    async def fresh_load(self) -> Load:
        """The same."""
        return self.load

    def note(self, tokens: int, gap_s: float | None, now_s: float) -> None:
        """Tokens have come."""
        self._meter.record(now_s - (gap_s or 0.0) / tokens, now_s, tokens, gap_s is not None)

    async def submit(self, request: Wish) -> Mailbox:
        """Takes a request. Raises RefusedError."""
        settings = self._settings
        if request.request_id in self._runs:
            raise DuplicateError(f"request {request.request_id!r} is running already")
        needed = request.prompt_tokens + request.limits.max_output_tokens
        if needed > settings.max_sequence_tokens:
            raise TooLargeError(
                f"prompt of {request.prompt_tokens} and output of {request.limits.max_output_tokens} tokens"
                f" exceed {settings.max_sequence_tokens}",
                needed_tokens=needed,
                max_sequence_tokens=settings.max_sequence_tokens,
            )
        # Not by the line: whoever came just now has not entered it yet.
        if len(self._runs) >= settings.slots + settings.queue:
            raise QueueFullError(
                f"{settings.queue} requests are waiting already",
                waiting=settings.queue,
                queue=settings.queue,
            )
        mailbox = Mailbox(request.request_id, 1)

        def deliver(event: Event) -> None:
            if isinstance(event, Output):
                self._read_prompt(run)
            mailbox.put(event)

        generation = Generation(
            request, self._server, self._table, self._bytes_per_token, self, deliver, self._clock
        )
        task = asyncio.create_task(self._carry_out(request, mailbox, generation))
        run = self._runs[request.request_id] = _Run(mailbox, generation, task, request.prompt_tokens)
        self._backlog_tokens += run.unread_tokens
        task.add_done_callback(lambda _: self._forget(run))
        return mailbox

    def cancel(self, mailbox: Mailbox) -> None:
        """Ends a request, if it has not ended: the stream from the server is closed."""
        run = self._runs.get(mailbox.request_id)
        if run is not None and run.mailbox is mailbox:
            # It is over from now on for whoever asks, though closing the stream takes a moment.
            self._forget(run)
            run.task.cancel()

    async def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> tuple[Limits, int] | None:
        """Changes a running request's limits."""
        run = self._runs.get(request_id)
        if run is None:
            return None
        limits = run.generation.adjust(reasoning_tokens, reason_until_s)
        return limits, run.generation.reasoning_tokens

    async def _carry_out(self, wish: Wish, mailbox: Mailbox, generation: Generation) -> None:
        try:
            await self._line.enter(wish.urgency)
            try:
                await generation.run()
            finally:
                self._line.leave()
        except RpcError as error:
            mailbox.put(Failed(wish.request_id, FailureKind.REQUEST, error.message, error))
        except Exception as error:  # whatever nobody foresaw ends one request, and is told as such
            mailbox.put(Failed(wish.request_id, FailureKind.REQUEST, repr(error)))

    def _read_prompt(self, run: _Run) -> None:
        self._backlog_tokens -= run.unread_tokens
        run.unread_tokens = 0

    def _forget(self, run: _Run) -> None:
        self._read_prompt(run)
        if self._runs.get(run.mailbox.request_id) is run:
            del self._runs[run.mailbox.request_id]


class _Line:
    """Slots, and who waits for one: the most urgent first."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.taken = 0
        self._heap: list[tuple[tuple[int, float, float], int, asyncio.Future[None]]] = []
        self._counter = itertools.count()

    @property
    def waiting(self) -> int:
        """Who has no slot yet."""
        return len(self._heap)

    async def enter(self, urgency: tuple[int, float, float]) -> None:
        """Returns with a slot, to be given back by `leave`."""
        if self.taken < self._slots:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        place = (urgency, next(self._counter), turn)
        heapq.heappush(self._heap, place)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()  # it was this one's turn already
            elif place in self._heap:  # where more urgent ones keep coming, it would stay for good
                self._heap.remove(place)
                heapq.heapify(self._heap)
            raise

    def leave(self) -> None:
        """Gives a slot to the next in line, or back."""
        while self._heap:
            _, _, turn = heapq.heappop(self._heap)
            if not turn.done():
                turn.set_result(None)
                return
        self.taken -= 1
