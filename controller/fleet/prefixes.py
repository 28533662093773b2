"""Which workers have a system turn's state at hand, as their completions told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from controller.fleet.worker import Worker

MOST_PREFIXES = 4096
"""That are remembered, the last used ones."""
MOST_HOLDERS = 4
"""Of each, the last ones to tell."""


class Prefixes:
    """Cached tokens by system turn and worker. A worker may have dropped what it had; its next completion
    tells.
    """

    def __init__(self) -> None:
        self._holders: OrderedDict[int, OrderedDict[Worker, int]] = OrderedDict()

    def holders(self, digest: int) -> Mapping[Worker, int]:
        """The cached tokens of this turn by worker."""
        return self._holders.get(digest, {})

    def note(self, digest: int, worker: Worker, cached_tokens: int) -> None:
        """A request with this turn found so many of its tokens cached."""
        holders = self._holders.setdefault(digest, OrderedDict())
        holders.pop(worker, None)
        if cached_tokens:
            holders[worker] = cached_tokens
        while len(holders) > MOST_HOLDERS:
            holders.popitem(last=False)
        self._holders.move_to_end(digest)
        if not holders:
            del self._holders[digest]
        if len(self._holders) > MOST_PREFIXES:
            self._holders.popitem(last=False)

    def forget(self, worker: Worker) -> None:
        """A worker has left."""
        for holders in self._holders.values():
            holders.pop(worker, None)
