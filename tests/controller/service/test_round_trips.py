"""What a request costs the store."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import pytest

from controller.policy import LivePolicy, parse_policy
from controller.service.membership import Sources
from controller.service.server import Controller
from controller.state.connect import open_store
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import LOCAL, Door
from tests.controller.state.conftest import TIMEOUT_S
from tests.controller.state.servers import Server, serving

POLICY = """\
apiVersion: curfew/v1
tenants:
  - name: limited
    mode: no_think
    budget: {answer: 500}
    limits: {rate: 1000/s, tokens: 1M/s, concurrency: 50}
    key: {env: LIMITED}
"""
REQUESTS = 20
EXCHANGES_PER_S, LOOKS_PER_S = 4.0, 2.0
"""Of a controller, however many requests it has."""
LEASES = ("{fleet}:controllers", "{fleet}:workers", "{pool:default}:demand:2")
EXPECTED = {"admit", "tell", "SCRIPT", "HELLO", "CLIENT", *(f"lease of curfew:{name}" for name in LEASES)}
"""The upper-case ones load a script, once, and open a connection."""


def sha(script: str) -> str:
    text = resources.files("controller.state").joinpath("lua", f"{script}.lua").read_text()
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@asynccontextmanager
async def watched(server: Server) -> AsyncIterator[Counter[str]]:
    """Counts the scripts that the server runs meanwhile, by name, and all other commands."""
    names = {sha(name): name for name in ("admit", "tell", "lease", "drop")}
    seen: Counter[str] = Counter()
    marked = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def follow() -> None:
        async for line in reader:
            words = [word.strip('"') for word in line.decode().split()[3:]]
            if words[:1] == ["EVALSHA"]:
                script = names.get(words[1], "unknown")
                seen[f"lease of {words[3]}" if script == "lease" else script] += 1
            elif words == ["PING"]:
                marked.set()
            elif "lua]" not in line.decode():
                seen[words[0]] += 1

    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    task = asyncio.create_task(follow())
    try:
        yield seen
        # What was done before is seen before this.
        await asyncio.to_thread(server.command, "PING")
        await asyncio.wait_for(marked.wait(), 20)
    finally:
        task.cancel()
        writer.close()


@pytest.mark.parametrize("answer_tokens", [2, 400])
async def test_a_request_takes_two_round_trips_at_most_and_no_token_takes_any(
    tmp_path: Path, answer_tokens: int
) -> None:
    script = Script(answer=" ".join("a" * answer_tokens), step_s=0.0002)
    policy = LivePolicy(lambda: parse_policy(POLICY, "policy.yaml", {"LIMITED": "l"}))
    with serving(tmp_path) as server:
        async with FakeWorker(script) as worker:
            store = open_store(server.url, TIMEOUT_S)
            running = Controller(policy, Sources([worker.address]), time.monotonic, store=store)
            door = Door(await running.start(LOCAL))
            try:
                await door.becomes(serving=True)
                await door.generate("limited")  # which loads the scripts
                async with watched(server) as seen:
                    began_s = time.monotonic()
                    for _ in range(REQUESTS):
                        answer = await door.generate("limited")
                        assert answer.completion.usage.answer_tokens == answer_tokens
                    took_s = time.monotonic() - began_s
            finally:
                await door.close()
                await running.stop(0.0)
    exchanges = seen["lease of curfew:{fleet}:controllers"]
    assert seen["admit"] == REQUESTS
    assert exchanges <= REQUESTS + EXCHANGES_PER_S * took_s + 2
    # Each exchange tells of this one tenant and of the one pool, in one pipeline.
    assert seen["tell"] <= exchanges + 1
    assert seen["lease of curfew:{pool:default}:demand:2"] <= exchanges + 1
    assert seen["lease of curfew:{fleet}:workers"] <= LOOKS_PER_S * took_s + 2
    assert set(seen) <= EXPECTED
