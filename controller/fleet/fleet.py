"""The connections to all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from controller.fleet.link import CHANNEL_OPTIONS, Link
from controller.fleet.members import Members, Source
from controller.fleet.outliers import Outliers
from controller.fleet.roster import Roster
from controller.fleet.worker import Worker
from curfew.rpc.tls import Dialler, Tls

TEND_S = 0.5
"""How often what is over is cleared away, and outliers are looked for."""


class Fleet:
    """Keeps the roster up to date over a link to each worker that any source names.

    A worker that is named no more gets nothing new; its link stays until its last request has ended or
    moved. `on_available` is called with whether there is any worker to choose, whenever that changes.
    """

    def __init__(
        self,
        roster: Roster,
        clock: Callable[[], float],
        on_available: Callable[[bool], None] = lambda available: None,
        tls: Tls | None = None,
    ) -> None:
        """tls: how the connections are encrypted; None: they are not. Raises OSError, and ValueError for a
        file of it that does not fit.
        """
        self._roster = roster
        self._clock = clock
        self._on_available = on_available
        self._available = False
        self._members = Members()
        self._links: dict[str, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None
        self.outliers = Outliers(self._changed)
        self._dialler = Dialler(tls, CHANNEL_OPTIONS)

    def start(self) -> None:
        """Begins to follow all workers; needs a running event loop."""
        for link in self._links.values():
            link.start()
        self._tending = asyncio.create_task(self._tend())

    async def close(self) -> None:
        """Stops following them."""
        if self._tending is not None:
            self._tending.cancel()
        await asyncio.gather(*self._closing, *(link.close() for link in self._links.values()))

    @property
    def workers(self) -> list[Worker]:
        """All of them, in the order of their addresses."""
        return [link.worker for _, link in sorted(self._links.items())]

    def link(self, worker: Worker) -> Link:
        """The connection to a worker of the roster, or to one that has left it and has requests of ours."""
        return self._links[worker.address]

    def tell(self, source: Source, named: Mapping[str, bool]) -> None:
        """Takes all addresses, HOST:PORT, that a source names now, with whether each is draining."""
        members = self._members.tell(source, named)
        for address, member in members.items():
            link = self._links.get(address)
            if link is None:
                link = self._links[address] = Link(Worker(address), self._clock, self._changed, self._dialler)
                self.outliers.add(link.worker)
                if self._tending is not None:
                    link.start()
            link.name(member)
        for address in self._links.keys() - members.keys():
            self._links[address].name(None)
        self._clear()

    def _changed(self, worker: Worker) -> None:
        link = self._links.get(worker.address)
        if link is None or link.worker is not worker:
            return  # a last word of one that has left, which the roster would take for a new one
        self._roster.changed(worker)
        available = self._roster.best() is not None
        if available != self._available:
            self._available = available
            self._on_available(available)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            self._clear()
            self.outliers.review(self._clock())

    def _clear(self) -> None:
        """Closes the links to workers that have left and have no more requests of ours."""
        for address, link in list(self._links.items()):
            if link.worker.member is None and not link.worker.own_requests:
                del self._links[address]
                self.outliers.remove(link.worker)
                self._roster.remove(link.worker)
                closing = asyncio.create_task(link.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
