"""Services start, drain, die and come back."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import grpc
import pytest

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from tests.system.conftest import (
    LONG_ANSWER,
    LONG_SUM,
    MODEL,
    ROOT,
    Answered,
    System,
    greedy,
    running_system,
    start_worker,
)


async def curfew(*arguments: str) -> tuple[int, str, str]:
    """Runs the `curfew` command. Returns (exit status, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "curfew"), *arguments, stdout=PIPE, stderr=PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def test_a_request_that_runs_is_finished_when_both_services_are_told_to_stop(tmp_path: Path) -> None:
    async with running_system(tmp_path) as (system, worker, controller):
        async with system.client("patient") as client:
            events: list[reasoning_pb2.GenerateResponse] = []
            async for event in client.generate(greedy(LONG_SUM)):
                if event.HasField("delta") and not any(e.HasField("delta") for e in events):
                    worker.process.send_signal(signal.SIGTERM)
                    controller.process.send_signal(signal.SIGTERM)
                events.append(event)
        assert Answered(events).text(pb.PHASE_ANSWER) == LONG_ANSWER
        assert await asyncio.wait_for(controller.process.wait(), 10) == 0
        assert await asyncio.wait_for(worker.process.wait(), 10) == 0


async def test_a_dead_worker_is_unavailable_until_another_takes_its_place(tmp_path: Path) -> None:
    async with running_system(tmp_path) as (system, worker, _):
        worker.process.kill()
        await worker.process.wait()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await system.ask("patient", "What is 12 + 37?")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        replacement = await start_worker(system.worker)
        try:
            answered = await asyncio.wait_for(_ask_until_answered(system), 20)
            assert answered.text(pb.PHASE_ANSWER) == "49"
        finally:
            await replacement.stop()


async def _ask_until_answered(system: System) -> Answered:
    while True:
        try:
            return await system.ask("patient", "What is 12 + 37?")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)


async def test_serve_runs_both_and_ask_streams_from_it_until_ctrl_c(tmp_path: Path) -> None:
    serving = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "curfew"),
        *("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
        stdout=PIPE,
        stderr=PIPE,
    )
    assert serving.stdout is not None
    address = ""
    async for line in serving.stdout:
        if line.startswith(b"controller"):
            address = line.split()[1].decode()
        if line.startswith(b"ready"):
            break
    status, out, errors = await curfew(
        "ask", "--address", address, "--tenant", "analyst", "What is 12 + 37 + 45?"
    )
    assert status == 0, errors
    assert "plan think" in out
    assert "12 + 37 = 49" in out
    assert "\n94\n" in out
    status, out, errors = await curfew("ask", "--address", address, "--key", "nonsense", "What is 1 + 2?")
    assert (status, out) == (1, "")
    assert "UNAUTHENTICATED" in errors
    serving.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(serving.wait(), 40) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worker", "--model", "no/such/model"), "no/such/model/config.json"),
        (("worker", "--model", str(MODEL), "--listen", "nowhere:1"), "nowhere:1"),
        (("controller", "--policy", "no/such/policy.yaml", "--worker", "127.0.0.1:1"), "no/such/policy.yaml"),
        (
            ("controller", "--policy", str(ROOT / "pyproject.toml"), "--worker", "127.0.0.1:1"),
            "pyproject.toml:1",
        ),
    ],
)
async def test_what_cannot_start_says_why_in_a_line_and_exits_with_2(
    arguments: tuple[str, ...], said: str
) -> None:
    status, out, errors = await curfew(*arguments)
    assert (status, out) == (2, "")
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", [(), ("worker",), ("controller",), ("ask",), ("serve",)])
async def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    status, out, _ = await curfew(*command, "--help")
    assert status == 0
    assert "usage" in out.lower()
