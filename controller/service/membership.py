"""Has the fleet follow those who name workers: the command line, announcements, DNS."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from controller.fleet import Fleet, Source
from controller.fleet.dns import follow_name
from controller.state.registry import follow_workers
from controller.state.store import Store, WorkerRecord


@dataclass(frozen=True, slots=True)
class Sources:
    """Where workers are looked for, beside those that announce themselves.

    static: addresses, HOST:PORT. dns: a name and a port. All together make the fleet.
    """

    static: Sequence[str] = ()
    dns: tuple[str, int] | None = None


class Membership:
    """Tells the fleet whenever a source has news."""

    def __init__(self, sources: Sources, store: Store, fleet: Fleet) -> None:
        self._sources = sources
        self._store = store
        self._fleet = fleet
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to follow all sources; needs a running event loop."""
        self._fleet.tell(Source.STATIC, dict.fromkeys(self._sources.static, False))
        self._tasks.append(asyncio.create_task(follow_workers(self._store, self._announced)))
        if self._sources.dns is not None:
            name, port = self._sources.dns
            self._tasks.append(asyncio.create_task(follow_name(name, port, self._looked_up)))

    async def stop(self) -> None:
        """Follows them no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _announced(self, workers: Mapping[str, WorkerRecord]) -> None:
        # One that was restarted at its old address may still have its lease from before.
        draining: dict[str, bool] = {}
        for worker in workers.values():
            draining[worker.address] = draining.get(worker.address, True) and worker.draining
        self._fleet.tell(Source.ANNOUNCED, draining)

    def _looked_up(self, addresses: Set[str]) -> None:
        self._fleet.tell(Source.DNS, dict.fromkeys(addresses, False))
