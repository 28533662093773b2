"""All workers are gone, hundreds of callers come again and again, and the workers come back."""

from __future__ import annotations

import asyncio

from curfew.client import AsyncClient, Reply, Retry
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import KEYS, controller

CALLERS = 240
SLOTS = 4
SCRIPT = Script(reasoning=16, answer="it is 42", step_s=0.004)
"""Of which the pool serves some 50 a second: all callers together ask for five seconds of it."""
OUTAGE_S = 1.5
POLICY = """\
apiVersion: curfew/v1
tenants:
  - name: support
    objectives: {deadline: 1s, share: p90}
    budget: {max: 40, answer: 8}
    key: {env: SUPPORT}
"""
UNTIRING = Retry(attempts=1000, max_wait_s=60.0)


async def test_after_an_outage_callers_are_served_at_the_pools_pace_and_in_time() -> None:
    async with FakeWorker(SCRIPT, slots=SLOTS) as gone:
        address = gone.address
    port = int(address.rpartition(":")[2])
    async with controller([address], POLICY, ready=False) as door:
        await door.becomes(serving=False)
        tasks_before = len(asyncio.all_tasks())
        async with AsyncClient(door.addresses.listen, key=KEYS["SUPPORT"], retry=UNTIRING) as client:
            asking = [asyncio.create_task(client.ask("What is 1 + 2?")) for _ in range(CALLERS)]
            # An outage lasts; nothing else is waited for here.
            await asyncio.sleep(OUTAGE_S)
            assert not any(task.done() for task in asking)
            async with FakeWorker(SCRIPT, slots=SLOTS, port=port) as worker, asyncio.timeout(60):
                began_s = asyncio.get_running_loop().time()
                replies: list[Reply] = await asyncio.gather(*asking)
                took_s = asyncio.get_running_loop().time() - began_s
                served = len(worker.requests)
                served_s = sum(reply.completion.timings.total_s for reply in replies) / CALLERS
                again = await asyncio.gather(*(client.ask("What is 1 + 2?") for _ in range(SLOTS)))
        # Nothing is left of those that were refused: what is kept for a caller ends with its call.
        assert len(asyncio.all_tasks()) <= tasks_before + 2
    assert served == CALLERS, "what is computed is computed once: nobody gave up on it"
    assert sum(reply.completion.kept for reply in replies) >= 0.9 * CALLERS
    assert took_s < 5 * CALLERS * served_s / SLOTS + 5.0, "the pool has hardly stood idle"
    assert all(reply.completion.kept for reply in again)
