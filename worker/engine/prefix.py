"""Checkpoints of shared prompts: the state after a system text, and the pages before it.

A state weighs as much as thousands of tokens of keys and values, so one is kept only where reuse is likely:
at the end of a system turn that was seen before. What goes first is what saves the least work per byte
(Marconi, MLSys '25), by GreedyDual-Size-Frequency (Cherkasova 1998): a checkpoint's worth is tokens saved ×
uses / bytes, on a clock that rises to the worth of what was evicted, so that past glory fades.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from worker.engine.cache import PagePool, SlotPool
from worker.model.chat import Prompt
from worker.model.pools import Pools

# System turns remembered after one sighting, to recognise the second.
_REMEMBERED = 4096

Key = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Checkpoint:
    """What a prompt's first tokens leave behind.

    slot: its own state slot. pages: full pages that it shares. worth: see the module.
    """

    key: Key
    slot: int
    pages: list[int]
    uses: int
    worth: float

    @property
    def tokens(self) -> int:
        """Prompt tokens whose prefill it saves."""
        return len(self.key)


class PrefixCache:
    """Owns the checkpoints and the slots of their states; their pages are shared with sequences."""

    def __init__(self, slots: SlotPool, pages: PagePool, pools: Pools, chunk: int) -> None:
        """chunk: of the scan. Without slots nothing is ever kept."""
        self._slots, self._pages, self._pools = slots, pages, pools
        # Whole pages, and whole chunks, so that results are the same with and without checkpoints.
        self._alignment = math.lcm(chunk, pages.page_tokens)
        self._entries: dict[Key, Checkpoint] = {}
        self._sighted: OrderedDict[int, None] = OrderedDict()
        """Hashes of keys, the last sighted last. A collision keeps a checkpoint too early, no more."""
        self._clock = 0.0

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._entries.values())

    def key(self, prompt: Prompt) -> Key:
        """The part of a prompt that a checkpoint may cover; empty when it is too short for one.

        It never is the whole prompt: after its last token something must be sampled.
        """
        if not self._slots.count:
            return ()
        shared = min(prompt.shared, len(prompt.ids) - 1)
        return prompt.ids[: shared - shared % self._alignment]

    def find(self, key: Key) -> Checkpoint | None:
        """The checkpoint of exactly these tokens."""
        return self._entries.get(key)

    def use(self, entry: Checkpoint, slot: int) -> list[int]:
        """Copies a checkpoint's state into a slot; returns its pages, which the caller now holds too."""
        entry.uses += 1
        self._rate(entry)
        self._pools.copy_slot(entry.slot, slot)
        self._pages.share(entry.pages)
        return list(entry.pages)

    def sighted_before(self, key: Key) -> bool:
        """Notes a sighting of a key without checkpoint; whether it is worth one: this is not the first."""
        if not key:
            return False
        number = hash(key)
        before = number in self._sighted
        self._sighted[number] = None
        self._sighted.move_to_end(number)
        if len(self._sighted) > _REMEMBERED:
            self._sighted.popitem(last=False)
        return before

    def keep(self, key: Key, slot: int, pages: list[int]) -> None:
        """Makes a checkpoint of a sequence's state slot and pages, which lie exactly behind `key`."""
        if key in self._entries:  # another sequence with the same prompt was faster
            return
        if not self._slots.free:
            self.evict()
        entry = Checkpoint(key, self._slots.take(), pages, uses=1, worth=0.0)
        self._pools.copy_slot(slot, entry.slot)
        self._pages.share(pages)
        self._rate(entry)
        self._entries[key] = entry

    def evict(self, spare: Checkpoint | None = None) -> bool:
        """Drops the checkpoint that saves the least work per byte, but not `spare`. False without any."""
        entry = min((e for e in self if e is not spare), key=lambda e: e.worth, default=None)
        if entry is None:
            return False
        self._clock = entry.worth
        del self._entries[entry.key]
        self._slots.give(entry.slot)
        self._pages.give(entry.pages)
        return True

    @property
    def evictable_pages(self) -> int:
        """Pages that nobody but checkpoints holds."""
        # Who holds one page of a checkpoint holds them all: the first tells.
        return sum(len(e.pages) for e in self if self._pages.holders(e.pages[0]) == 1)

    def check(self) -> None:
        """Raises CacheError unless every slot is accounted for."""
        self._slots.check(entry.slot for entry in self)

    def _rate(self, entry: Checkpoint) -> None:
        size = self._pools.slot_bytes + len(entry.pages) * self._pools.page_bytes
        entry.worth = self._clock + entry.tokens * entry.uses / size
