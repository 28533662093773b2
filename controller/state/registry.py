"""Which workers have announced themselves, as it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from controller.state.store import Store, StoreError, WorkerRecord

log = logging.getLogger(__name__)

POLL_S = 0.5
"""A new or lost worker is seen within this time, or within its lease's and this."""


async def follow_workers(
    store: Store,
    changed: Callable[[Mapping[str, WorkerRecord]], None],
    every_s: float = POLL_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Calls `changed` with all workers, first and whenever something about them is new; runs until cancelled.
    While the store is away those that were known are taken to be there; whoever sends to them sees if not.
    """
    known: Mapping[str, WorkerRecord] | None = None
    while True:
        try:
            async with asyncio.timeout(every_s):
                found = await store.workers()
        except (StoreError, TimeoutError) as error:
            log.debug("workers are not to be read: %s", error)
        else:
            if found != known:
                changed(found)
                known = found
        await sleep(every_s)
