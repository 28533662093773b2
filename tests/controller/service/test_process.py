"""The controller as a process: how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from controller.service.server import Addresses
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Door

READY = "curfew controller ready: "


def policy_file(directory: Path) -> Path:
    file = directory / "policy.yaml"
    digest = hashlib.sha256(b"a").hexdigest()
    file.write_text(f"apiVersion: curfew/v1\ntenants:\n  - name: analyst\n    keys: [sha256:{digest}]\n")
    return file


async def start(*arguments: str | Path) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller", *map(str, arguments), stdout=PIPE, stderr=PIPE
    )


@asynccontextmanager
async def running(
    worker: FakeWorker, directory: Path, *arguments: str
) -> AsyncIterator[tuple[Process, Door]]:
    """A ready process on free ports."""
    local = ("--worker", worker.address, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    process = await start("--policy", policy_file(directory), *local, *arguments)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        assert line.startswith(READY)
        addresses = dict(pair.split("=") for pair in line.removeprefix(READY).split())
        door = Door(Addresses(addresses["listen"], addresses["admin"]))
        try:
            await door.becomes(serving=True)
            yield process, door
        finally:
            await door.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def cannot_start(*arguments: str | Path) -> str:
    """What a controller says that ends with code 2."""
    process = await start(*arguments)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (2, b"")
    return err.decode()


async def test_a_drain_lets_running_requests_end_and_takes_no_more(tmp_path: Path) -> None:
    async with FakeWorker(Script(pause_after=5)) as worker, running(worker, tmp_path) as (process, door):
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        process.send_signal(signal.SIGTERM)
        await door.becomes(serving=False)
        refused = await door.generate("analyst")
        assert refused.error is not None
        assert refused.error.code() is grpc.StatusCode.UNAVAILABLE
        worker.go_on.set()
        answer = await request
        assert answer.error is None
        assert answer.completion.usage.answer_tokens == 3
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_drain_ends_after_its_grace_period(tmp_path: Path) -> None:
    worker = FakeWorker(Script(pause_after=5))
    async with worker, running(worker, tmp_path, "--grace-s", "0.2") as (process, door):
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        answer = await request
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(worker.idle.wait(), 10)


async def test_a_changed_policy_file_comes_into_force(tmp_path: Path) -> None:
    async with FakeWorker() as worker, running(worker, tmp_path) as (process, door):
        before = (await door.generate("analyst")).plan.policy_version
        file = tmp_path / "policy.yaml"
        changed = file.with_name("changed")
        changed.write_text(file.read_text() + "    budget: {max: 7}\n")
        changed.rename(file)
        assert process.stderr is not None
        while b"is in force, instead of" not in await asyncio.wait_for(process.stderr.readline(), 30):
            assert process.returncode is None
        plan = (await door.generate("analyst")).plan
        assert plan.policy_version != before
        assert plan.budget.reasoning_tokens == 7


async def test_a_bad_policy_is_told_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("apiVersion: curfew/v1\ntenants:\n  - name: a\n    mod: think\n  - name: A\n")
    said = await cannot_start("--policy", file, "--worker", "127.0.0.1:1")
    first, second = said.splitlines()
    assert first == f"curfew controller: {file}:4:5: tenants[0].mod: unknown key; did you mean mode?"
    assert second.startswith(f"{file}:5:11: tenants[1].name: 'A' is not a name;")


async def test_an_address_in_use_is_told(tmp_path: Path) -> None:
    async with FakeWorker() as worker:
        said = await cannot_start(
            "--policy", policy_file(tmp_path), "--worker", worker.address, "--listen", worker.address
        )
    last = said.splitlines()[-1]
    assert last.startswith(f"curfew controller: cannot listen on {worker.address}: in use")


async def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    said = await cannot_start("--policy", policy_file(tmp_path), "--worker", "nowhere")
    assert said.splitlines()[-1].endswith("error: argument --worker: 'nowhere' is not HOST:PORT")
