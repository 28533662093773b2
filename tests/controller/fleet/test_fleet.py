"""Workers that are named, and named no more."""

from __future__ import annotations

import asyncio

from controller.fleet import Fleet, Roster, Source
from tests.controller.fake_worker import FakeWorker


async def test_the_last_word_of_a_worker_that_has_left_does_not_bring_it_back() -> None:
    roster = Roster()
    available = asyncio.Event()
    fleet = Fleet(roster, asyncio.get_running_loop().time, lambda is_any: available.set() if is_any else None)
    async with FakeWorker() as worker:
        fleet.tell(Source.STATIC, {worker.address: False})
        fleet.start()
        await asyncio.wait_for(available.wait(), 10)
        link = fleet.link(fleet.workers[0])
        fleet.tell(Source.STATIC, {})
        link.lose("its connection has ended")
        assert roster.models == ()
        await fleet.close()
