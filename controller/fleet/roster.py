"""All workers, and the choice among them. Pure state."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable

from controller.fleet.choice import TIE, Candidate, pick
from controller.fleet.outlook import Outlook, Size
from controller.fleet.prefixes import Prefixes
from controller.fleet.ring import Ring
from controller.fleet.worker import Worker
from controller.planning.decision import Ask, Prefix
from controller.planning.needs import NOTHING, Needs
from curfew.v1 import worker_pb2

USUAL = Size(256.0, 256.0)
"""A request's size until some have shown it."""
SHARE_OF_NEW = 1 / 64
"""Of a request in the mean of the last ones."""
SPREAD = 4.0
"""Workers of one class of finish that differ by fewer requests than this may change their order by lot."""
_TIE = math.log1p(TIE)

_CLASS = 10_000.0
"""Requests are fewer: a class of finishes has so much room in a rank."""
_FULL = 1e6 * _CLASS


class Ranking:
    """Workers in the order of their ranks, without a scan at each choice.

    A heap whose entries are replaced rather than moved: a worker's newest entry is the valid one, the others
    are dropped as they come up.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Worker]] = []
        self._newest: dict[Worker, int] = {}
        self._counter = itertools.count()

    def drop(self, worker: Worker) -> None:
        """Ranks a worker no longer."""
        self._newest.pop(worker, None)

    def update(self, worker: Worker, rank: float) -> None:
        """Ranks a worker anew; the least is first."""
        number = next(self._counter)
        self._newest[worker] = number
        heapq.heappush(self._heap, (rank, number, worker))
        if len(self._heap) > 8 * len(self._newest) + 64:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def best(self) -> Worker | None:
        """The worker that is ranked first; of equals the one that changed longest ago."""
        self._clear()
        return self._heap[0][2] if self._heap else None

    def best_two(self) -> list[Worker]:
        """It and the next; fewer where there are fewer."""
        best = self.best()
        if best is None or len(self._newest) < 2:
            return [] if best is None else [best]
        first = heapq.heappop(self._heap)
        self._clear()
        second = self._heap[0][2]
        heapq.heappush(self._heap, first)
        return [best, second]

    def _clear(self) -> None:
        heap, newest = self._heap, self._newest
        while heap and newest.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)

    def _is_valid(self, entry: tuple[float, int, Worker]) -> bool:
        return self._newest.get(entry[2]) == entry[1]


class Sent:
    """A request of this controller's at a worker, as it counts towards the worker's load."""

    def __init__(self, worker: Worker, prompt_tokens: int, roster: Roster) -> None:
        self._worker = worker
        self._prompt_tokens = prompt_tokens
        self._roster = roster
        self._started = False
        worker.note_sent(prompt_tokens)
        roster.changed(worker)

    def start(self) -> None:
        """The worker has begun with its prompt."""
        if not self._started:
            self._started = True
            self._worker.note_started(self._prompt_tokens)
            self._roster.changed(self._worker)

    def learn(self, size: Size, prefix: Prefix | None, cached_tokens: int) -> None:
        """It was completed there from its beginning. cached_tokens: of its prompt, that were there before."""
        self._roster.learn(size)
        if prefix is not None:
            self._roster.learn_prefix(prefix, self._worker, cached_tokens)

    def end(self) -> None:
        """It is over, begun or not. To be called exactly once."""
        self.start()
        self._worker.note_ended()
        self._roster.changed(self._worker)


class Roster:
    """The workers that requests can be sent to.

    `on_change` is called whenever something changes that a decision may depend on: a worker's load, or
    whether it is available.
    """

    def __init__(
        self,
        workers: Iterable[Worker] = (),
        on_change: Callable[[], None] = lambda: None,
        lot: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """lot: a random number in [0, 1), by which workers that are about equally good are ordered, so that
        controllers with the same news go different ways; 0 for one that is alone.
        """
        self.on_change = on_change
        self._lot = lot
        self._usual = USUAL
        self._rankings = {NOTHING: Ranking()}
        """By what is needed: of every kind of need that came, of which there are a few."""
        self._outlooks: dict[Worker, Outlook] = {}
        """Of the available ones."""
        self._ring = Ring()
        self._prefixes = Prefixes()
        self._known: dict[Worker, tuple[int, int]] = {}  # slots, and how many of them are in use
        self._model: dict[Worker, str] = {}  # of each that has told it
        self._models = Counter[str]()  # workers by model
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
        """Names of the models that workers run, available or not, sorted."""
        return tuple(sorted(self._models))

    def best(self, needs: Needs = NOTHING) -> Worker | None:
        """The available worker where a usual request would end first, of those that are what is needed; one
        with a free slot before all others. None when there is none.
        """
        return self._ranking(needs).best()

    def choose(self, ask: Ask) -> Worker | None:
        """The available worker where this request is to go; None when there is none that is what it needs.

        Looks at two of the best, at the one where its system turn belongs, and at those that have it.
        """
        found = self._ranking(ask.needs).best_two()
        outlooks = self._outlooks
        if not found or outlooks[found[0]].full or (len(found) == 1 and ask.prefix is None):
            return found[0] if found else None
        size = Size(ask.prompt_tokens, self._usual.output_tokens)
        if ask.prefix is None:
            return self._better(found[0], found[1], size)
        home = self._ring.owner(ask.prefix.digest, lambda worker: self._has_room(worker, ask.needs))
        holders = self._prefixes.holders(ask.prefix.digest)
        found += [worker for worker in holders if self._has_room(worker, ask.needs)]
        if home is not None:
            found.append(home)
        candidates = []
        for worker in found:
            outlook = outlooks[worker]
            if not outlook.full:
                finish_s = outlook.finish_s(size, holders.get(worker, 0))
                candidates.append(Candidate(worker, outlook.requests, finish_s, worker is home))
        return pick(candidates)

    def another(self, than: Worker, needs: Needs) -> Worker | None:
        """One of the best with a free slot, but not this one; None when there is none."""
        for worker in self._ranking(needs).best_two():
            if worker is not than and self.has_slot(worker):
                return worker
        return None

    def has_slot(self, worker: Worker) -> bool:
        """Whether an available worker has a slot for one more request."""
        outlook = self._outlooks.get(worker)
        return outlook is not None and not outlook.full

    def anyone(self, needs: Needs) -> bool:
        """Whether any worker that is known is what is needed, available or not. Looks at all of them."""
        return any(worker.can(needs) for worker in self._known)

    def send(self, worker: Worker, prompt_tokens: int) -> Sent:
        """Counts a request that is being sent to a worker; `prompt_tokens` as estimated."""
        return Sent(worker, prompt_tokens, self)

    def learn(self, size: Size) -> None:
        """A request of this size was completed."""
        prompt, output = self._usual
        self._usual = Size(
            prompt + SHARE_OF_NEW * (size.prompt_tokens - prompt),
            output + SHARE_OF_NEW * (size.output_tokens - output),
        )

    def learn_prefix(self, prefix: Prefix, worker: Worker, cached_tokens: int) -> None:
        """A request with this system turn found so many tokens of it at a worker."""
        if worker in self._known:
            self._prefixes.note(prefix.digest, worker, cached_tokens)

    def take_load(self, worker: Worker, load: worker_pb2.WorkerLoad, now_s: float) -> None:
        """Takes the load that a worker reported on a stream."""
        worker.take_load(load, now_s)
        self.changed(worker)

    def changed(self, worker: Worker) -> None:
        """Ranks a worker of which something is news."""
        model = worker.limits.model if worker.described else None
        if self._model.get(worker) != model:
            self._take_model(worker, model)
        if worker.available:
            self._rank(worker)
        else:
            self._count(worker, 0, 0)
            self._outlooks.pop(worker, None)
            for ranking in self._rankings.values():
                ranking.drop(worker)
        self.on_change()

    def _take_model(self, worker: Worker, model: str | None) -> None:
        before = self._model.pop(worker, None)
        if before is not None:
            self._models[before] -= 1
            if not self._models[before]:
                del self._models[before]
        if model is not None:
            self._model[worker] = model
            self._models[model] += 1

    def remove(self, worker: Worker) -> None:
        """Forgets a worker."""
        worker.lose()
        self.changed(worker)
        self._take_model(worker, None)
        del self._known[worker]
        self._ring.remove(worker)
        self._prefixes.forget(worker)

    def _rank(self, worker: Worker) -> None:
        load = worker.load
        self._count(worker, worker.limits.slots, load.running)
        outlook = self._outlooks[worker] = worker.outlook(load)
        finish_class = math.floor(math.log(outlook.finish_s(self._usual)) / _TIE)
        rank = finish_class * _CLASS + outlook.requests + SPREAD * self._lot()
        if outlook.full:
            rank += _FULL
        for needs, ranking in self._rankings.items():
            if needs is NOTHING or worker.can(needs):
                ranking.update(worker, rank)
            else:
                ranking.drop(worker)

    def _count(self, worker: Worker, slots: int, occupied: int) -> None:
        before = self._known.get(worker)
        if before is None:
            self._ring.add(worker)
            before = 0, 0
        self._capacity += slots - before[0]
        self._occupied += occupied - before[1]
        self._known[worker] = slots, occupied

    def _better(self, one: Worker, other: Worker, size: Size) -> Worker:
        """The same as `pick` of two, neither of which is affine."""
        a, b = self._outlooks[one], self._outlooks[other]
        if b.full:
            return one
        a_s, b_s = a.finish_s(size), b.finish_s(size)
        if a_s <= b_s * (1 + TIE) and b_s <= a_s * (1 + TIE) and a.requests != b.requests:
            return one if a.requests < b.requests else other
        return one if a_s <= b_s else other

    def _ranking(self, needs: Needs) -> Ranking:
        ranking = self._rankings.get(needs)
        if ranking is None:
            ranking = self._rankings[needs] = Ranking()
            for worker in list(self._known):
                self.changed(worker)
        return ranking

    def _has_room(self, worker: Worker, needs: Needs) -> bool:
        return self.has_slot(worker) and worker.can(needs)
