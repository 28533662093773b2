"""Where requests wait for the desk's decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.desk import Desk, Flight, Ticket
from controller.fleet import Sent, Worker
from controller.planning.decision import Ask, Refusal
from controller.policy import TenantPolicy


class RefusedError(Exception):
    """The desk has refused a request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.why)
        self.refusal = refusal


class Reception:
    """Calls the desk when something happened that it may decide upon, and tells the waiting what it decided.

    However much happens in one turn of the event loop, the desk decides once.
    """

    def __init__(self, desk: Desk, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._clock = clock
        self._futures: dict[Ticket, asyncio.Future[Flight | Refusal]] = {}
        self._displaced: set[asyncio.Event] = set()
        self._deciding: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def place(
        self, ask: Ask, policy: TenantPolicy, now_s: float, looked: Callable[[], None] = lambda: None
    ) -> Flight:
        """Waits until a request that has just been received has a place. The flight must be ended. looked:
        called once the desk has looked at it for the first time, and it may have to wait.

        Raises RefusedError, and NoWorkerError.
        """
        ticket = self._desk.arrive(ask, policy, now_s)
        if isinstance(ticket, Refusal):
            raise RefusedError(ticket)
        future: asyncio.Future[Flight | Refusal] = asyncio.get_running_loop().create_future()
        self._futures[ticket] = future
        try:
            self._decide(now_s)
            looked()
            verdict = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(verdict := future.result(), Flight):
                verdict.leave()
            raise
        finally:
            self._futures.pop(ticket, None)
            self._desk.leave(ticket)
        if isinstance(verdict, Refusal):
            raise RefusedError(verdict)
        return verdict

    async def move(self, flight: Flight, resuming: bool, patience_s: float) -> bool:
        """Finds another worker for a flight whose own was lost; waits so long for one. resuming: after what
        it has generated. Returns whether there is one.
        """
        changed = asyncio.Event()
        self._displaced.add(changed)
        try:
            async with asyncio.timeout(patience_s):
                while not self._desk.move(flight, resuming):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            self._displaced.discard(changed)
        return True

    def hedge(self, flight: Flight) -> tuple[Worker, Sent] | None:
        """A place at a second worker, which must be ended; None when there is none to spare."""
        return self._desk.hedge(flight)

    def charge_hedge(self, flight: Flight, slot_s: float) -> None:
        """The one of two workers that was not needed had a slot for so long."""
        self._desk.charge_hedge(flight, slot_s)

    def news(self) -> None:
        """Something happened: a worker said something, a place became free."""
        for changed in self._displaced:
            changed.set()
        if self._futures and self._deciding is None:
            self._deciding = asyncio.get_running_loop().call_soon(self._decide_now)

    def _decide_now(self) -> None:
        self._deciding = None
        self._decide(self._clock())

    def _decide(self, now_s: float) -> None:
        for ticket, verdict in self._desk.decide(now_s):
            future = self._futures.pop(ticket)
            if not future.done():
                future.set_result(verdict)
            elif isinstance(verdict, Flight):
                verdict.leave()
        self._set_alarm(now_s)

    def _set_alarm(self, now_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        wake_s = self._desk.wake_s()
        if wake_s is not None:
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, wake_s - now_s), self._decide_now)
