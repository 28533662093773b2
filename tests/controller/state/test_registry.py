"""Workers that come and go, as a controller sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controller.state.memory import MemoryStore
from controller.state.registry import LEASE_S, follow_workers
from controller.state.store import Store, StoreError, WorkerRecord

WORKER = WorkerRecord("w", "127.0.0.1:7300", "nano", "0.1", capacity=16)


class Script:
    """What happens between one look and the next, and what was seen at each."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.seen: list[Mapping[str, WorkerRecord]] = []
        self.paused: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.paused.append(seconds)
        look = len(self.paused)
        if look == 1:
            await self.store.announce(WORKER, 60)
        elif look == 3:
            await self.store.announce(replace(WORKER, load=3), 60)
        elif look == 4:
            self.store.workers = self.fail  # type: ignore[method-assign]  # away for one look
        elif look == 5:
            del self.store.workers
            await self.store.withdraw("w")
        elif self.now_s() > LEASE_S + 5 * 0.5:
            raise asyncio.CancelledError

    def now_s(self) -> float:
        return sum(self.paused)

    async def fail(self) -> Mapping[str, WorkerRecord]:
        raise StoreError("away")


async def test_each_change_is_told_once_and_those_known_outlast_an_outage_by_a_lease() -> None:
    script = Script(MemoryStore(lambda: 0.0))
    store: Store = script.store
    with pytest.raises(asyncio.CancelledError):
        await follow_workers(store, script.seen.append, 0.5, script.sleep, script.now_s)
    assert script.seen == [{}, {"w": WORKER}, {"w": replace(WORKER, load=3)}, {}]
    assert set(script.paused) == {0.5}
