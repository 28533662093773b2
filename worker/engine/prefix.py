"""Checkpoints of shared prompts: the state after a system text, and the pages before it.

A state weighs as much as thousands of tokens of keys and values, so one is kept only where reuse is likely:
at the end of a system turn that was seen before. What goes first is what saves the least work per byte
(Marconi, MLSys '25), by GreedyDual-Size-Frequency (Cherkasova 1998): an entry's worth is work saved × uses /
bytes, on a clock that rises to the worth of what was evicted, so that past glory fades.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# System turns remembered after one sighting, to recognise the second.
_REMEMBERED = 4096

Key = tuple[int, ...]


@dataclass(slots=True)
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
    """Finds, admits and ranks checkpoints. Slots and pages are the caller's to take and give."""

    def __init__(self, alignment: int | None, slot_bytes: int, page_bytes: int) -> None:
        """alignment: checkpoints lie at multiples of it: whole pages, and whole chunks of the scan, so that
        results are the same with and without them.
        """
        self._alignment, self._slot_bytes, self._page_bytes = alignment, slot_bytes, page_bytes
        self._entries: dict[Key, Checkpoint] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._entries.values())

    def key(self, ids: Sequence[int], shared: int) -> Key:
        """The part of a prompt that a checkpoint may cover; empty when it is too short for one."""
        return () if self._alignment is None else tuple(ids[: shared - shared % self._alignment])

    def find(self, key: Key) -> Checkpoint | None:
        """The checkpoint of exactly these tokens, its use counted."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.uses += 1
            self._rate(entry)
        return entry

    def wants(self, key: Key) -> bool:
        """Whether a prefix that is about to be computed should be kept: it is not, and was seen before."""
        if not key or key in self._entries:
            return False
        if key in self._seen:
            self._seen.move_to_end(key)
            return True
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def add(self, key: Key, slot: int, pages: list[int]) -> None:
        """Keeps a checkpoint whose slot and pages the caller took for it."""
        entry = Checkpoint(key, slot, pages, uses=1, worth=0.0)
        self._rate(entry)
        self._entries[key] = entry

    def pop_least_worth(self) -> Checkpoint | None:
        """Removes the entry that saves the least work per byte; the caller gives its slot and pages back."""
        if not self._entries:
            return None
        entry = min(self._entries.values(), key=lambda e: e.worth)
        self._clock = entry.worth
        del self._entries[entry.key]
        return entry

    def _rate(self, entry: Checkpoint) -> None:
        size = self._slot_bytes + len(entry.pages) * self._page_bytes
        entry.worth = self._clock + entry.tokens * entry.uses / size
