"""Who holds which state slot and which pages.

A running sequence holds one slot, and pages for all tokens that it may ever have. A page may be shared: by
sequences forked from one another, and by prefix checkpoints. Nobody writes to a shared page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush


class CacheError(AssertionError):
    """The books do not balance: a defect of the engine."""


class SlotPool:
    """A range of state slots, each held by at most one owner. The lowest free one is taken first."""

    def __init__(self, slots: range) -> None:
        self._slots = slots
        self._free = list(slots)  # a heap

    @property
    def count(self) -> int:
        """All slots."""
        return len(self._slots)

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def take(self) -> int:
        """Takes a free slot. The caller has checked that there is one."""
        return heappop(self._free)

    def give(self, slot: int) -> None:
        """Gives a slot back."""
        heappush(self._free, slot)

    def check(self, held: Iterable[int]) -> None:
        """Raises CacheError unless the held slots and the free ones are all slots, each once."""
        every = sorted([*held, *self._free])
        if every != list(self._slots):
            raise CacheError(f"slots held and free are not {self._slots}, each once: {every}")


class PagePool:
    """Pages of keys and values, counted by their holders.

    The lowest free pages are taken first, so that a sequence's pages mostly lie side by side: a long context
    is then read where it lies.
    """

    def __init__(self, count: int, page_tokens: int) -> None:
        self.count = count
        self.page_tokens = page_tokens
        self._free = list(range(count))  # a heap
        self._holders = [0] * count

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_tokens)

    def take(self, count: int) -> list[int]:
        """Takes free pages. The caller has checked that there are enough."""
        pages = [heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Adds a holder to each page."""
        for page in pages:
            self._holders[page] += 1

    def give(self, pages: Sequence[int]) -> None:
        """Takes a holder away from each page; a page without holders is free."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                heappush(self._free, page)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Raises CacheError unless each page has as many holders as it is held by, and the others are
        free.
        """
        counted = Counter(page for pages in held for page in pages)
        for page, holders in enumerate(self._holders):
            if counted[page] != holders:
                raise CacheError(f"page {page} is held {counted[page]} times, but counted {holders} times")
        if sorted(self._free) != [page for page, holders in enumerate(self._holders) if not holders]:
            raise CacheError("free pages are not those without holders, each once")
