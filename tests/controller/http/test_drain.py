"""How the HTTP door ends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import httpx

from controller.policy import LivePolicy, parse_policy
from controller.service.membership import Sources
from controller.service.server import Controller
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.http.door import CHAT, PLAIN
from tests.controller.service.harness import KEYS, LOCAL, POLICY


async def test_what_runs_may_end_and_what_is_new_is_refused() -> None:
    async with FakeWorker(Script(pause_after=5)) as worker:
        controller, client = await _start(worker)
        async with client:
            running = asyncio.create_task(client.post(CHAT, json=PLAIN[CHAT] | {"stream": True}))
            await asyncio.wait_for(worker.paused.wait(), 10)
            ending = asyncio.create_task(controller.stop(grace_s=20))
            while (refused := await client.post(CHAT, json=PLAIN[CHAT])).status_code == 429:
                pass
            worker.go_on.set()
            answer = await running
            await ending
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_what_does_not_end_in_time_is_told_so() -> None:
    async with FakeWorker(Script(pause_after=5)) as worker:
        controller, client = await _start(worker)
        async with client:
            running = asyncio.create_task(client.post(CHAT, json=PLAIN[CHAT] | {"stream": True}))
            await asyncio.wait_for(worker.paused.wait(), 10)
            await controller.stop(grace_s=0.0)
            answer = await running
        await asyncio.wait_for(worker.idle.wait(), 10)
    assert '"code":"draining"' in answer.text
    assert "[DONE]" not in answer.text


async def _start(worker: FakeWorker) -> tuple[Controller, httpx.AsyncClient]:
    policy = LivePolicy(lambda: parse_policy(POLICY, "policy.yaml", KEYS))
    controller = Controller(policy, Sources([worker.address]), time.monotonic)
    addresses = await controller.start(replace(LOCAL, http="127.0.0.1:0"))
    assert await controller.had_worker(10)
    headers = {"authorization": "Bearer a"}
    return controller, httpx.AsyncClient(base_url=f"http://{addresses.http}", headers=headers, timeout=20)
