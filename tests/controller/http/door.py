"""A controller with an HTTP door, and a caller of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, controller

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
QUESTION = "What is 12 + 37 + 45?"
PLAIN: dict[str, dict[str, object]] = {
    CHAT: {"model": "fake", "messages": [{"role": "user", "content": QUESTION}]},
    RESPONSES: {"model": "fake", "input": QUESTION},
}
"""The least that can be asked."""


@dataclass
class House:
    """A worker, a controller and an HTTP client of a tenant."""

    worker: FakeWorker
    client: httpx.AsyncClient

    async def post(self, path: str, **fields: object) -> httpx.Response:
        """Asks the least, with these fields beside."""
        return await self.client.post(path, json=PLAIN[path] | fields)


@asynccontextmanager
async def house(
    script: Script | None = None, policy: str = POLICY, tenant: str = "analyst"
) -> AsyncIterator[House]:
    async with (
        FakeWorker(script) as worker,
        controller([worker.address], policy, http="127.0.0.1:0") as door,
        httpx.AsyncClient(
            base_url=f"http://{door.addresses.http}",
            headers={"authorization": f"Bearer {tenant[0]}"},
            timeout=20,
        ) as client,
    ):
        yield House(worker, client)


def events(text: str) -> list[dict[str, object]]:
    """The data of server-sent events."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in found if each != "[DONE]"]
