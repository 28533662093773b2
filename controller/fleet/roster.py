"""All workers, and the choice among them. Pure state."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable

from controller.fleet.worker import Worker
from controller.planning.needs import NOTHING, Needs
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

    def drop(self, worker: Worker) -> None:
        """Ranks a worker no longer."""
        self._newest.pop(worker, None)

    def update(self, worker: Worker) -> None:
        """Ranks a worker anew, or drops it when it is not available."""
        if not worker.available:
            self.drop(worker)
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


class Roster:
    """The workers that requests can be sent to.

    `on_change` is called whenever something changes that a decision may depend on: a worker's load, or
    whether it is available.
    """

    def __init__(self, workers: Iterable[Worker] = (), on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._rankings = {NOTHING: Ranking()}
        """By what is needed: of every kind of need that came, of which there are a few."""
        self._known: dict[Worker, tuple[int, int]] = {}  # slots, and how many of them are in use
        self._model: dict[Worker, str] = {}  # of each that is available
        self._running = Counter[str]()  # available workers by model
        self._capacity = self._occupied = 0
        for worker in workers:
            self.changed(worker)

    @property
    def capacity(self) -> int:
        """State slots of all available workers."""
        return self._capacity

    @property
    def occupied(self) -> int:
        """How many of them are in use, as far as is known."""
        return self._occupied

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that available workers run, sorted."""
        return tuple(sorted(self._running))

    def best(self, needs: Needs = NOTHING) -> Worker | None:
        """The available worker with the least expected queue of those that are what is needed; None when
        there is none.
        """
        ranking = self._rankings.get(needs)
        if ranking is None:
            ranking = self._rankings[needs] = Ranking()
            for worker in self._known:
                if worker.can(needs):
                    ranking.update(worker)
        return ranking.best()

    def anyone(self, needs: Needs) -> bool:
        """Whether any worker that is known is what is needed, available or not. Looks at all of them."""
        return any(worker.can(needs) for worker in self._known)

    def send(self, worker: Worker, prompt_tokens: int) -> Sent:
        """Counts a request that is being sent to a worker; `prompt_tokens` as estimated."""
        return Sent(worker, prompt_tokens, self.changed)

    def take_load(self, worker: Worker, load: worker_pb2.WorkerLoad, now_s: float) -> None:
        """Takes the load that a worker reported on a stream."""
        worker.take_load(load, now_s)
        self.changed(worker)

    def changed(self, worker: Worker) -> None:
        """Ranks a worker of which something is news."""
        slots, occupied = (worker.limits.slots, worker.load.running) if worker.available else (0, 0)
        slots_before, occupied_before = self._known.get(worker, (0, 0))
        self._capacity += slots - slots_before
        self._occupied += occupied - occupied_before
        self._known[worker] = slots, occupied
        self._take_model(worker, worker.limits.model if worker.available else None)
        for needs, ranking in self._rankings.items():
            if worker.can(needs):
                ranking.update(worker)
            else:
                ranking.drop(worker)
        self.on_change()

    def _take_model(self, worker: Worker, model: str | None) -> None:
        before = self._model.pop(worker, None)
        if before is not None:
            self._running[before] -= 1
            if not self._running[before]:
                del self._running[before]
        if model is not None:
            self._model[worker] = model
            self._running[model] += 1

    def remove(self, worker: Worker) -> None:
        """Forgets a worker."""
        worker.lose()
        self.changed(worker)
        del self._known[worker]
