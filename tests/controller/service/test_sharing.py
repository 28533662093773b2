"""Two controllers with one store and one worker, seen from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from controller.policy import LivePolicy, parse_policy
from controller.service.membership import Sources
from controller.service.server import Controller
from controller.state.connect import open_store
from controller.state.shared import Timings
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import LOCAL, Door
from tests.controller.state.servers import Server, serving

POLICY = """\
apiVersion: curfew/v1
defaults:
  mode: no_think
  brownout: none
  budget: {answer: 16}
tenants:
  - {name: heavy, weight: 4, key: {env: HEAVY}}
  - {name: light, weight: 1, key: {env: LIGHT}}
"""
KEYS = {"HEAVY": "h", "LIGHT": "l"}
SCRIPT = Script(answer="a b c d e f g h i j", step_s=0.006)


@asynccontextmanager
async def controllers(
    server: Server, worker: FakeWorker
) -> AsyncIterator[tuple[list[Controller], list[Door]]]:
    async with AsyncExitStack() as stack:
        running, doors = [], []
        for _ in range(2):
            policy = LivePolicy(lambda: parse_policy(POLICY, "policy.yaml", KEYS))
            # Patient, since a test machine may be slow.
            store = open_store(server.url, Timings().call_s)
            one = Controller(policy, Sources([worker.address]), time.monotonic, store=store)
            door = Door(await one.start(LOCAL))
            stack.push_async_callback(one.stop, 0.0)
            stack.push_async_callback(door.close)
            await door.becomes(serving=True)
            running.append(one)
            doors.append(door)
        yield running, doors


async def test_requests_go_on_without_the_store_and_counters_agree_when_it_is_back(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with FakeWorker(SCRIPT, slots=4) as worker, controllers(server, worker) as (both, doors):
            async with asyncio.timeout(60):
                server.stop()
                while any(one.shared.outage is None for one in both):
                    for door in doors:
                        assert (await door.generate("heavy")).error is None
                alone = [one.shared.served("heavy") for one in both]
                assert min(alone) > 0
                server.start()
                while any(one.shared.outage for one in both) or not _agree(both, least=max(alone)):
                    for one in both:
                        await one.shared.synchronise()


def _agree(both: list[Controller], least: float) -> bool:
    first, second = (one.shared.served("heavy") for one in both)
    return first == pytest.approx(second) and first > least
