"""Which workers have announced themselves, as it changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from controller.state.store import Store, StoreError, WorkerRecord

log = logging.getLogger(__name__)

POLL_S = 0.5
"""A new or lost worker is seen within this time, or within its lease's and this."""
LEASE_S = 5.0
"""Of a worker. One that does not answer is noticed long before, by those that send to it."""


async def follow_workers(
    store: Store,
    changed: Callable[[Mapping[str, WorkerRecord]], None],
    every_s: float = POLL_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Calls `changed` with all workers, first and whenever something about them is new; runs until cancelled.

    While the store is away those that were known are taken to be there; whoever sends to them sees if not.
    The same holds for a lease's time after it is back, since it may have forgotten them.
    """
    known: Mapping[str, WorkerRecord] | None = None
    trusted_s = clock()
    while True:
        try:
            async with asyncio.timeout(every_s):
                found = await store.workers()
        except (StoreError, TimeoutError) as error:
            log.debug("workers are not to be read: %s", error)
            trusted_s = clock() + LEASE_S
        else:
            if known and clock() < trusted_s:
                found = {**known, **found}
            if found != known:
                changed(found)
                known = found
        await sleep(every_s)
