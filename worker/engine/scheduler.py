"""Decides what a step computes: who is admitted, who decodes, whose prompt goes on.

A running sequence first *prefills*: its prompt, or what a preemption made it lose, is computed in pieces that
share a budget of tokens per step, most urgent first. Then it *decodes*: what it has pending (the token
sampled last, or a forced closing text) is fed whole in every step, so that no decode ever waits for a prompt.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from worker.engine.cache import CacheError, PagePool, SlotPool
from worker.engine.prefix import Checkpoint, PrefixCache
from worker.engine.sequence import Sequence
from worker.model.pools import Pools


@dataclass(frozen=True, slots=True)
class Piece:
    """A sequence's next `count` pending tokens."""

    sequence: Sequence
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step computes: the one pending token of each of `decodes`, and `pieces`."""

    decodes: list[Sequence]
    pieces: list[Piece]


class Scheduler:
    """Owns the queue, the running sequences, and who of them holds which slot and pages."""

    def __init__(
        self,
        slots: SlotPool,
        pages: PagePool,
        prefixes: PrefixCache,
        pools: Pools,
        *,
        chunk: int,
        step_tokens: int,
        idle_step_tokens: int,
    ) -> None:
        """chunk: of the scan. step_tokens, idle_step_tokens: prefill tokens of a step while something
        decodes, and while nothing does. A chunk is the least that is computed, so that prefill never stalls.
        """
        self._slots, self._pages, self._prefixes, self._pools = slots, pages, prefixes, pools
        self._chunk = chunk
        self._step_tokens, self._idle_step_tokens = max(chunk, step_tokens), max(chunk, idle_step_tokens)
        self.waiting: list[Sequence] = []
        """Most urgent first: first samples with their children, and preempted sequences."""
        self._waiting_tokens = 0
        self._prefilling: list[Sequence] = []
        """Most urgent first."""
        self._decoding: list[Sequence] = []
        """By slot: states that lie side by side are advanced where they lie."""

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self._slots.count - self._slots.free

    @property
    def backlog_tokens(self) -> int:
        """Tokens to prefill, of all that runs or waits."""
        return self._waiting_tokens + sum(s.pending for s in self._prefilling)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence and its children. It must fit the empty engine: see `slots_and_pages`."""
        sequence.prefix = self._prefixes.key(sequence.request.prompt)
        self._enqueue(sequence)

    def slots_and_pages(self, prompt_tokens: int, max_tokens: int, samples: int) -> tuple[int, int]:
        """What a request holds while it runs: pages that its prompt fills are shared by its samples."""
        shared = prompt_tokens // self._pages.page_tokens
        return samples, shared + samples * (self._pages.needed(max_tokens) - shared)

    def admit(self, now_s: float) -> list[Sequence]:
        """Starts waiting sequences in order, and returns them.

        The first that does not fit holds up those behind it: small requests never starve a large one.
        """
        admitted: list[Sequence] = []
        while self.waiting:
            sequence = self.waiting[0]
            entry = self._prefixes.find(sequence.prefix)
            if not self._make_room(sequence, entry):
                break
            self._dequeue(sequence)
            self._start(sequence, entry, now_s)
            admitted.append(sequence)
        return admitted

    def plan(self) -> Plan:
        """Fills a step. It is empty only when nothing runs."""
        decodes: list[Sequence] = []
        pieces: list[Piece] = []
        for sequence in self._decoding:
            pending = sequence.pending
            if pending == 1:
                decodes.append(sequence)
            else:
                pieces.append(Piece(sequence, pending))
        budget = self._prefill_budget()
        for sequence in self._prefilling:
            count = self._next_piece(sequence, budget)
            if count:
                pieces.append(Piece(sequence, count))
                budget -= count
        return Plan(decodes, pieces)

    def advance(self, plan: Plan) -> list[tuple[int, Sequence]]:
        """Notes that a plan was computed.

        Returns the sequences whose next token can be sampled, each with its row in the plan (decodes, then
        pieces). Children of a prompt that is complete are forked, and stand beside it.
        """
        for sequence in plan.decodes:
            sequence.computed += 1
        ready = list(enumerate(plan.decodes))
        for row, piece in enumerate(plan.pieces, start=len(ready)):
            sequence = piece.sequence
            sequence.computed += piece.count
            if sequence.computed == sequence.checkpoint:
                self._keep_prefix(sequence)
            if sequence.pending:
                continue
            ready.append((row, sequence))
            if sequence.prefilling:
                ready += [(row, child) for child in self._start_decoding(sequence)]
        return ready

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence and frees what it holds; its children go with it."""
        if sequence.slot is not None:
            self._stop(sequence)
        elif sequence in self.waiting:
            self._dequeue(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Makes `child`, which has the tokens of `parent` and perhaps more, decode from where `parent` is.

        False, and nothing changes, where it does not find room at once.
        """
        assert not parent.prefilling
        full = parent.computed // self._pages.page_tokens
        own = self._pages.needed(child.request.max_tokens) - full
        if not self._slots.free or self._pages.free < own:
            return False
        child.slot, child.pages, child.prefix = self._slots.take(), self._pages.take(own), parent.prefix
        self._copy(parent, child)
        return True

    def check_integrity(self) -> None:
        """Raises CacheError unless every slot, page and waiting token is accounted for."""
        running = list(self._running())
        self._slots.check(s.slot for s in running if s.slot is not None)
        self._prefixes.check()
        self._pages.check([*(s.pages for s in running), *(e.pages for e in self._prefixes)])
        tokens = sum(s.pending for s in self.waiting)
        if tokens != self._waiting_tokens:
            raise CacheError(f"{tokens} tokens wait, but {self._waiting_tokens} are counted")

    def _running(self) -> Iterator[Sequence]:
        for sequence in (*self._prefilling, *self._decoding):
            yield sequence
            yield from sequence.children

    # The queue.

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_urgency)
        self._waiting_tokens += sequence.pending

    def _dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self._waiting_tokens -= sequence.pending

    # Room.

    def _make_room(self, sequence: Sequence, entry: Checkpoint | None) -> bool:
        """Frees slots and pages for a waiting sequence: by evicting checkpoints but `entry`, its own, and by
        preempting sequences of lower classes, the least urgent first. Changes nothing where that is in vain.
        """
        request = sequence.request
        samples = 1 + len(sequence.children)
        slots, pages = self.slots_and_pages(len(request.prompt.ids), request.max_tokens, samples)
        if entry is not None:
            pages -= len(entry.pages)
        if self._slots.free >= slots and self._pages.free >= pages:
            return True
        victims = sorted(
            (s for s in (*self._prefilling, *self._decoding) if s.request.priority > request.priority),
            key=_urgency,
        )
        if not self._would_fit(slots, pages, victims, entry):
            return False
        while self._slots.free < slots or self._pages.free < pages:
            if self._pages.free >= pages or not self._prefixes.evict(spare=entry):
                self._preempt(victims.pop())
        return True

    def _would_fit(self, slots: int, pages: int, victims: list[Sequence], entry: Checkpoint | None) -> bool:
        """Whether there is room once all victims and all checkpoints but `entry` are gone."""
        gone = {s for victim in victims for s in (victim, *victim.children)}
        if self._slots.free + len(gone) < slots:
            return False
        # At most, since pages may be shared: mostly this tells.
        most = self._pages.free + self._prefixes.evictable_pages + sum(len(s.pages) for s in gone)
        if most < pages:
            return False
        kept = {page for s in self._running() if s not in gone for page in s.pages}
        if entry is not None:
            kept.update(entry.pages)
        return self._pages.count - len(kept) >= pages

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a sequence back to the queue; all of its tokens will be computed again."""
        self._stop(sequence)
        sequence.prefilling = True
        sequence.computed = sequence.checkpoint = 0
        sequence.preemptions += 1
        self._enqueue(sequence)

    # Starting, forking, stopping.

    def _start(self, sequence: Sequence, entry: Checkpoint | None, now_s: float) -> None:
        sequence.slot = self._slots.take()
        if entry is not None:
            sequence.pages = self._prefixes.use(entry, sequence.slot)
            sequence.computed = entry.tokens
        else:
            self._pools.clear_slot(sequence.slot)
        request = sequence.request
        sequence.pages += self._pages.take(self._pages.needed(request.max_tokens) - len(sequence.pages))
        shared = len(request.prompt.ids) // self._pages.page_tokens
        for child in sequence.children:
            child.slot = self._slots.take()
            child.pages = self._pages.take(self._pages.needed(request.max_tokens) - shared)
        if not sequence.preemptions:
            for sample in (sequence, *sequence.children):
                sample.started_s = now_s
                sample.cached_tokens = sequence.computed
            if entry is None and self._prefixes.sighted_before(sequence.prefix):
                sequence.checkpoint = len(sequence.prefix)
        insort(self._prefilling, sequence, key=_urgency)

    def _start_decoding(self, sequence: Sequence) -> list[Sequence]:
        """Moves on a sequence whose pending tokens are computed; returns its children, now forked."""
        self._prefilling.remove(sequence)
        insort(self._decoding, sequence, key=_slot)
        sequence.prefilling = False
        children, sequence.children = sequence.children, []
        for child in children:
            self._copy(sequence, child)
        return children

    def _copy(self, parent: Sequence, child: Sequence) -> None:
        """Gives a child, which holds a slot and its own last pages, the parent's state and tokens so far.

        The pages that it has no own for are full and shared; what the parent has behind them is copied.
        """
        assert parent.slot is not None
        assert child.slot is not None
        self._pools.copy_slot(parent.slot, child.slot)
        shared = self._pages.needed(child.request.max_tokens) - len(child.pages)
        written = self._pages.needed(parent.computed)
        for source, target in zip(parent.pages[shared:written], child.pages, strict=False):
            self._pools.copy_page(source, target)
        self._pages.share(parent.pages[:shared])
        child.pages = parent.pages[:shared] + child.pages
        child.computed = parent.computed
        child.prefilling = False
        insort(self._decoding, child, key=_slot)

    def _stop(self, sequence: Sequence) -> None:
        """Takes a running sequence and its children out of the batch and frees what they hold."""
        (self._prefilling if sequence.prefilling else self._decoding).remove(sequence)
        for sample in (sequence, *sequence.children):
            assert sample.slot is not None
            self._slots.give(sample.slot)
            self._pages.give(sample.pages)
            sample.slot, sample.pages = None, []

    # Prefill.

    def _prefill_budget(self) -> int:
        """Prefill tokens of the next step.

        It makes those who decode wait, so one long prompt gets `step_tokens` and no more; each further prompt
        adds to it, the more the fewer decode: of many that arrive together the first do not hold up the rest.
        Those that come first and are short enough for one step each share one: that makes nobody wait longer.
        """
        if not self._decoding:
            return self._idle_step_tokens
        share = 1 + max(len(self._prefilling) - 1, 0) / len(self._decoding)
        short = takewhile(lambda tokens: tokens <= self._step_tokens, (s.pending for s in self._prefilling))
        most = max(self._step_tokens, self._idle_step_tokens)
        return min(max(int(self._step_tokens * share), sum(short)), most)

    def _next_piece(self, sequence: Sequence, budget: int) -> int:
        """How many pending tokens fit the budget, so that they end with a chunk, at the checkpoint, or with
        the last of them.
        """
        end = sequence.checkpoint or len(sequence.tokens)
        reach = sequence.computed + budget
        if reach < end:
            # Results do not depend on how a prompt was cut.
            end = reach - reach % self._chunk
        return max(end - sequence.computed, 0)

    def _keep_prefix(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        sequence.checkpoint = 0
        pages = sequence.pages[: len(sequence.prefix) // self._pages.page_tokens]
        self._prefixes.keep(sequence.prefix, sequence.slot, pages)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot


def _urgency(sequence: Sequence) -> tuple[int, float, float]:
    return sequence.request.urgency
