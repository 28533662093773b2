"""The controller as a process: how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.service.server import Addresses
from controller.simulation.trace import read_trace
from curfew.v1 import admin_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Door, ask

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    worker = FakeWorker(Script(pause_after=5))
    async with worker, running(worker, tmp_path, "--grace-s", "3600") as (process, door):
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        process.send_signal(number)
        await door.becomes(serving=False)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == -number
        assert (await request).error is not None
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()


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


def top(door: Door) -> dict[str, Any]:
    """What `curfew top --once --json` prints."""
    curfew = str(Path(sys.executable).with_name("curfew"))
    command = [curfew, "top", "--once", "--json", "--admin", door.addresses.admin]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def test_a_shadow_and_a_recording_are_begun_by_options_and_ended_with_the_process(
    tmp_path: Path,
) -> None:
    shadow, recordings = tmp_path / "shadow.yaml", tmp_path / "recordings"
    shadow.write_text("apiVersion: curfew/v1\ntenants:\n  - {name: analyst, budget: {max: 7}}\n")
    options = ("--shadow", str(shadow), "--record", str(recordings), "--record-label", "task")
    async with FakeWorker() as worker, running(worker, tmp_path, *options) as (process, door):
        answer = await door.generate("analyst", ask(labels={"task": "triage", "user": "jo"}))
        assert answer.error is None
        told = await asyncio.to_thread(top, door)
        shadow.rename(tmp_path / "gone.yaml")
        while not (await door.admin.GetStatus(admin_pb2.GetStatusRequest())).shadow.rejected:
            pass
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    (analyst,) = told["tenants"]
    assert (analyst["shadow"]["compared"], analyst["shadow"]["budget"]) == ("1", "1")
    assert told["status"]["workers"][0]["available"]
    (arrival,) = read_trace(next(recordings.glob("*.csv"))).arrivals
    assert (arrival.tenant, dict(arrival.labels)) == ("analyst", {"task": "triage"})


async def test_a_recording_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    said = await cannot_start("--policy", file, "--worker", "127.0.0.1:1", "--record", file)
    assert said == f"curfew controller: nothing can be recorded to {file}: File exists\n"


async def test_keys_come_from_the_files_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "analyst-key").write_text("another key\n")
    file = policy_file(tmp_path)
    file.write_text(file.read_text().partition("    keys:")[0] + "    key: {file: analyst-key}\n")
    said = await cannot_start("--policy", file, "--worker", "127.0.0.1:1", "--secrets", tmp_path / "keys")
    assert said == (
        f"curfew controller: {file}:4:17: tenants[0].key.file: "
        "line 1 of secret analyst-key is not a key, which holds no space\n"
    )
