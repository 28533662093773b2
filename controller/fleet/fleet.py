"""All workers, and the choice among them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence

from controller.fleet.link import Link
from controller.fleet.worker import Worker
from curfew.v1 import worker_pb2


class Ranking:
    """Workers in the order of their ranks, without a scan at each choice.

    A heap whose entries are replaced rather than moved: a worker's newest entry is the valid one, the others
    are dropped as they come up.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], int, Worker]] = []
        self._newest: dict[Worker, int] = {}
        self._counter = itertools.count()

    def update(self, worker: Worker) -> None:
        """Ranks a worker anew, or drops it when it is not available."""
        if not worker.available:
            self._newest.pop(worker, None)
            return
        number = next(self._counter)
        self._newest[worker] = number
        heapq.heappush(self._heap, (worker.rank(), number, worker))
        if len(self._heap) > 8 * len(self._newest) + 64:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def best(self) -> Worker | None:
        """The worker that would start a request first; of equals the one that changed longest ago."""
        while self._heap and not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def _is_valid(self, entry: tuple[tuple[float, int], int, Worker]) -> bool:
        return self._newest.get(entry[2]) == entry[1]


class Sent:
    """A request of this controller's at a worker, as it counts towards the worker's load."""

    def __init__(self, worker: Worker, prompt_tokens: int, changed: Callable[[Worker], None]) -> None:
        self._worker = worker
        self._prompt_tokens = prompt_tokens
        self._changed = changed
        self._started = False
        worker.note_sent(prompt_tokens)
        changed(worker)

    def start(self) -> None:
        """The worker has begun with its prompt."""
        if not self._started:
            self._started = True
            self._worker.note_started(self._prompt_tokens)
            self._changed(self._worker)

    def end(self) -> None:
        """It is over, begun or not. To be called exactly once."""
        self.start()
        self._worker.note_ended()
        self._changed(self._worker)


class Fleet:
    """The workers at a fixed list of addresses.

    `on_available` is called with whether there is any worker to choose, whenever that changes.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        clock: Callable[[], float],
        on_available: Callable[[bool], None] = lambda available: None,
    ) -> None:
        self._clock = clock
        self._ranking = Ranking()
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

    def choose(self) -> Link | None:
        """The link to the worker with the least expected queue; None when none is available."""
        worker = self._ranking.best()
        return None if worker is None else self._links[worker]

    def send(self, worker: Worker, prompt_tokens: int) -> Sent:
        """Counts a request that is being sent to a worker; `prompt_tokens` as estimated."""
        return Sent(worker, prompt_tokens, self._changed)

    def take_load(self, worker: Worker, load: worker_pb2.WorkerLoad) -> None:
        """Takes the load that a worker reported on a stream."""
        worker.take_load(load, self._clock())
        self._changed(worker)

    def _changed(self, worker: Worker) -> None:
        self._ranking.update(worker)
        available = self._ranking.best() is not None
        if available != self._available:
            self._available = available
            self._on_available(available)
