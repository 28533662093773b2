"""Decides what a step computes: who is admitted, who decodes, whose prompt goes on.

Every running sequence has tokens pending (at least one). Those with few (a sampled token, a forced closing
text) are
fed whole in every step: a decode never waits for a prompt. What the step's token budget leaves goes to long
pending parts (prompts, recomputation), most urgent first, in pieces that end where a chunk of the scan ends.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from worker.engine.cache import PagePool, SlotPool
from worker.engine.prefix import Key, PrefixCache
from worker.engine.sequence import Sequence
from worker.model.pools import Pools

# Pending tokens up to this many are fed whole, whatever the budget: a closing text is about 5.
_FED_WHOLE = 16


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """step_tokens: tokens of a step while something decodes. idle_step_tokens: while nothing does. chunk:
    chunk length of the scan. queue: requests that may wait.
    """

    step_tokens: int
    idle_step_tokens: int
    chunk: int
    queue: int


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's part in a step: its next `count` pending tokens."""

    sequence: Sequence
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step computes, and the sequences that it admitted."""

    works: list[Work]
    admitted: list[Sequence]


class Scheduler:
    """Owns the queue, the running sequences, and who holds which slot and pages."""

    def __init__(
        self,
        settings: SchedulerSettings,
        slots: SlotPool,
        pages: PagePool,
        prefixes: PrefixCache,
        pools: Pools,
    ) -> None:
        self.settings = settings
        self._slots, self._pages, self._prefixes, self._pools = slots, pages, prefixes, pools
        self.waiting: list[list[Sequence]] = []
        """Groups of samples of one request, most urgent first. A preempted sequence is a group of its own."""
        self.running: list[Sequence] = []
        """In order of admission."""

    def add(self, group: list[Sequence]) -> None:
        """Queues the samples of a request."""
        insort(self.waiting, group, key=_urgency)

    def plan(self, now_s: float) -> Plan:
        """Admits whom it can, then fills a step. Without works only when nothing runs."""
        admitted = self._admit(now_s)
        ready = [s for s in self.running if s.fork_of is None]
        works = [Work(s, s.pending) for s in ready if s.pending <= _FED_WHOLE and not s.checkpoint]
        settings = self.settings
        budget = settings.step_tokens if works else settings.idle_step_tokens
        budget -= sum(work.count for work in works)
        long = sorted(
            (s for s in ready if s.pending > _FED_WHOLE or s.checkpoint), key=lambda s: s.request.urgency
        )
        for sequence in long:
            count = self._piece(sequence, budget)
            if count:
                works.append(Work(sequence, count))
                budget -= count
        return Plan(works, admitted)

    def _piece(self, sequence: Sequence, budget: int) -> int:
        """How many pending tokens fit the budget, so that the piece ends with a chunk, a checkpoint or the
        last of them.
        """
        end = sequence.checkpoint or len(sequence.tokens)
        if end - sequence.computed <= budget:
            return end - sequence.computed
        reach = sequence.computed + max(budget, 0)
        return max(reach - reach % self.settings.chunk - sequence.computed, 0)

    def finish(self, sequence: Sequence) -> None:
        """Removes a running or waiting sequence and frees what it holds."""
        if sequence.slot is None:
            for group in self.waiting:
                if sequence in group:
                    group.remove(sequence)
            self.waiting = [group for group in self.waiting if group]
            return
        self.running.remove(sequence)
        self._release(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Makes a running child that holds a slot of its own go on from where its parent is.

        The child gets a copy of the state; full pages are shared, the page being written is copied. Of the
        pages that the child holds already, those that sharing makes needless are freed.
        """
        assert parent.slot is not None
        assert child.slot is not None
        self._pools.copy_slot(parent.slot, child.slot)
        full, partial = divmod(parent.computed, self._pages.page_tokens)
        self._pages.give(child.pages[:full])
        self._pages.share(parent.pages[:full])
        child.pages[:full] = parent.pages[:full]
        if partial:
            self._pools.copy_page(parent.pages[full], child.pages[full])
        child.computed = parent.computed
        child.fork_of = None

    def keep_prefix(self, sequence: Sequence) -> None:
        """Keeps a checkpoint of a sequence that stands exactly at its wanted place, if a slot is to be
        had.
        """
        assert sequence.slot is not None
        assert sequence.computed == sequence.checkpoint
        key: Key = tuple(sequence.tokens[: sequence.checkpoint])
        sequence.checkpoint = 0
        if not self._slots.free:
            return
        slot = self._slots.take()
        self._pools.copy_slot(sequence.slot, slot)
        pages = sequence.pages[: len(key) // self._pages.page_tokens]
        self._pages.share(pages)
        self._prefixes.add(key, slot, pages)

    def check_integrity(self) -> None:
        """Raises CacheError unless every slot and page is accounted for."""
        own = [s.slot for s in self.running if s.slot is not None]
        self._slots.check([*own, *(e.slot for e in self._prefixes)])
        self._pages.check([*(s.pages for s in self.running), *(e.pages for e in self._prefixes)])

    def _sequences(self) -> Iterator[Sequence]:
        yield from self.running
        for group in self.waiting:
            yield from group

    @property
    def backlog_tokens(self) -> int:
        """Pending tokens of all that runs or waits, but for the one that each decode has."""
        return sum(s.pending - 1 for s in self._sequences() if s.fork_of is None)

    def _admit(self, now_s: float) -> list[Sequence]:
        """Admits waiting groups in order; the first that does not fit holds up those behind it."""
        admitted: list[Sequence] = []
        while self.waiting and self._make_room(self.waiting[0]):
            for sequence in self.waiting.pop(0):
                self._start(sequence, now_s)
                admitted.append(sequence)
        return admitted

    def _make_room(self, group: list[Sequence]) -> bool:
        """Frees slots and pages for a group, by evicting checkpoints and preempting what is less important.

        The group's own checkpoint would be lost with the others: what it saves is little where room is that
        scarce.
        """
        slots = len(group)
        pages = sum(self._pages.needed(s.request.max_tokens) for s in group)
        while self._slots.free < slots or self._pages.free < pages:
            entry = self._prefixes.pop_least_worth()
            if entry is not None:
                self._slots.give(entry.slot)
                self._pages.give(entry.pages)
                continue
            victim = self._victim(group[0].request.priority)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _victim(self, priority: int) -> Sequence | None:
        """The least urgent sequence of a lower priority class; samples that wait for their fork are
        spared.
        """
        parents = {id(s.fork_of) for s in self.running if s.fork_of is not None}
        lower = [
            s
            for s in self.running
            if s.request.priority > priority and s.fork_of is None and id(s) not in parents
        ]
        return max(lower, key=lambda s: s.request.urgency, default=None)

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a sequence back to the queue; all of its tokens will be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.computed = sequence.checkpoint = 0
        sequence.preemptions += 1
        self.add([sequence])

    def _start(self, sequence: Sequence, now_s: float) -> None:
        sequence.slot = self._slots.take()
        self._pools.clear_slot(sequence.slot)
        request = sequence.request
        needed = self._pages.needed(request.max_tokens)
        if sequence.fork_of is None:
            key = self._prefixes.key(request.prompt.ids, request.prompt.shared)
            entry = self._prefixes.find(key)
            if entry is not None:
                self._pools.copy_slot(entry.slot, sequence.slot)
                self._pages.share(entry.pages)
                sequence.pages = list(entry.pages)
                sequence.computed = sequence.cached_tokens = entry.tokens
            elif self._prefixes.wants(key):
                sequence.checkpoint = len(key)
        sequence.pages += self._pages.take(needed - len(sequence.pages))
        if sequence.started_s is None:
            sequence.started_s = now_s
        self.running.append(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._slots.give(sequence.slot)
        self._pages.give(sequence.pages)
        sequence.slot, sequence.pages = None, []


def _urgency(group: list[Sequence]) -> tuple[int, float, float]:
    return group[0].request.urgency
