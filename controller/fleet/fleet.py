"""The connections to all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controller.fleet.link import Link
from controller.fleet.roster import Roster
from controller.fleet.worker import Worker


class Fleet:
    """Keeps the roster up to date over a link to each of a fixed list of addresses.

    `on_available` is called with whether there is any worker to choose, whenever that changes.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        roster: Roster,
        clock: Callable[[], float],
        on_available: Callable[[bool], None] = lambda available: None,
    ) -> None:
        self._roster = roster
        self._on_available = on_available
        self._available = False
        self._links = {worker: Link(worker, clock, self._changed) for worker in map(Worker, addresses)}

    def start(self) -> None:
        """Begins to follow all workers; needs a running event loop."""
        for link in self._links.values():
            link.start()

    async def close(self) -> None:
        """Stops following them."""
        await asyncio.gather(*(link.close() for link in self._links.values()))

    @property
    def workers(self) -> list[Worker]:
        """All of them, in the order of their addresses."""
        return sorted(self._links, key=lambda worker: worker.address)

    def link(self, worker: Worker) -> Link:
        """The connection to a worker of the roster."""
        return self._links[worker]

    def _changed(self, worker: Worker) -> None:
        self._roster.changed(worker)
        available = self._roster.best() is not None
        if available != self._available:
            self._available = available
            self._on_available(available)
