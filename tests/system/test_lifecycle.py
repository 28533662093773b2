"""Services start, drain, die and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import grpc
import httpx
import pytest

from curfew.processes import start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2, worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.controller.state.servers import free_port
from tests.system.conftest import (
    LONG_ANSWER,
    LONG_SUM,
    LOOPBACK,
    MODEL,
    ROOT,
    Answered,
    System,
    describe,
    greedy,
    running_system,
    start_worker,
)

CURFEW = str(Path(sys.executable).parent / "curfew")


async def curfew(*arguments: str) -> tuple[int, str, str]:
    """Runs the `curfew` command. Returns (exit status, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(CURFEW, *arguments, stdout=PIPE, stderr=PIPE)
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def start_serving() -> tuple[Process, dict[str, str]]:
    """`curfew serve`, ready, with the addresses that it prints."""
    serving = await asyncio.create_subprocess_exec(
        *(CURFEW, "serve", "--listen", LOOPBACK, "--admin", LOOPBACK, "--http", LOOPBACK),
        stdout=PIPE,
        stderr=PIPE,
    )
    assert serving.stdout is not None
    addresses: dict[str, str] = {}
    async for line in serving.stdout:
        if line.startswith(b"ready"):
            return serving, addresses
        name, address = line.decode().split()[:2]
        addresses[name] = address
    raise AssertionError("it ended")


def children(pid: int) -> dict[int, list[str]]:
    """Processes that a process has started, with their command lines."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # The second field, in brackets, is the name; the fourth is the parent.
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                command = status.with_name("cmdline").read_bytes().decode()
                found[int(status.parent.name)] = command.split("\0")
    return found


def is_gone(pid: int) -> bool:
    """Whether there is no such process."""
    return not Path(f"/proc/{pid}").exists()


async def is_listening(address: str) -> bool:
    """Whether somebody answers at an address."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:  # refused, or reset by one that is just about to listen
        return False
    # Where nobody listens, a connection may by chance begin at the very port that it goes to.
    itself = writer.get_extra_info("sockname") == writer.get_extra_info("peername")
    writer.close()
    await writer.wait_closed()
    return not itself


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


async def test_a_worker_is_reached_only_once_it_has_measured_its_speed() -> None:
    address = f"127.0.0.1:{free_port()}"
    slow = ("--least-step-ms", "20", "--slots", "1")
    starting = asyncio.create_task(
        start_service("worker", ["--model", str(MODEL), "--listen", address, *slow])
    )
    try:
        while not await is_listening(address):
            assert not starting.done(), "it is ready, and nobody listens"
        described = await describe(address)
        assert [point.batch_size for point in described.speed.decode] == [1]
        assert described.speed.decode[0].step.nanos >= 20_000_000
        assert described.speed.prefill_tokens_per_s > 0
    finally:
        assert await (await starting).stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_a_worker_at_once(number: signal.Signals) -> None:
    slow = ("--least-step-ms", "100", "--slots", "1", "--grace-s", "3600")
    worker = await start_service("worker", ["--model", str(MODEL), "--listen", LOOPBACK, *slow])
    try:
        async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
            request = worker_pb2.WorkerServiceGenerateRequest(
                request_id="r",
                messages=greedy(LONG_SUM).messages,
                mode=pb.MODE_THINK,
                budget=pb.Budget(reasoning_tokens=200, answer_tokens=12),
            )
            call = WorkerServiceStub(channel).Generate(request)
            await call.read()
            worker.process.send_signal(number)
            refused = WorkerServiceStub(channel).Generate
            while await refused(request, timeout=10).code() is not grpc.StatusCode.UNAVAILABLE:
                pass  # it has not begun to drain: the id is in use
            worker.process.send_signal(number)
            assert await asyncio.wait_for(worker.process.wait(), 10) == -number
            call.cancel()
    finally:
        await worker.stop()


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
    serving, addresses = await start_serving()
    key = {"authorization": "Bearer demo-analyst"}
    async with httpx.AsyncClient(headers=key) as client:
        models = await client.get(f"{addresses['http']}/models")
    assert [model["id"] for model in models.json()["data"]] == ["model"]
    at = ("--address", addresses["controller"])
    status, out, errors = await curfew("ask", *at, "--tenant", "analyst", "What is 12 + 37 + 45?")
    assert (status, out) == (0, "94\n"), errors
    assert "plan think" in errors
    assert "12 + 37 = 49" in errors
    status, out, errors = await curfew("ask", *at, "--tenant", "analyst", "--quiet", "What is 12 + 37?")
    assert (status, out) == (0, "49\n")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["many", "few"]}')
    answer = ("--tenant", "agent", "--quiet", "--json-schema", str(schema), "What is 12 + 37?")
    status, out, errors = await curfew("ask", *at, *answer)
    assert (status, out in ('"many"\n', '"few"\n')) == (0, True), errors
    schema.write_text("{")
    status, out, errors = await curfew("ask", *at, *answer)
    assert (status, out) == (2, "")
    assert "is no JSON" in errors
    status, out, errors = await curfew("ask", *at, "--key", "nonsense", "What is 1 + 2?")
    assert (status, out) == (4, "")
    assert errors.startswith("curfew ask: UNAUTHENTICATED: ")
    serving.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(serving.wait(), 40) == 0
    assert not await is_listening(addresses["worker"])
    assert not await is_listening(addresses["controller"])


async def test_serve_ends_the_other_service_and_fails_when_one_dies() -> None:
    serving, addresses = await start_serving()
    (worker,) = [pid for pid, command in children(serving.pid).items() if "worker" in command]
    os.kill(worker, signal.SIGKILL)
    _, errors = await asyncio.wait_for(serving.communicate(), 40)
    assert serving.returncode == 1
    assert "curfew serve: the worker ended by itself" in errors.decode()
    assert not await is_listening(addresses["controller"])


async def test_serve_is_not_reached_from_elsewhere_unless_told() -> None:
    status, out, errors = await curfew("serve", "--listen", "0.0.0.0:0", "--admin", LOOPBACK)
    assert (status, out) == (2, "")
    assert "--listen 0.0.0.0:0 can be reached from elsewhere" in errors
    assert "Traceback" not in errors


async def test_ctrl_c_while_serve_is_starting_leaves_nothing_behind() -> None:
    serving = await asyncio.create_subprocess_exec(CURFEW, "serve", stdout=PIPE, stderr=PIPE)
    while not (started := children(serving.pid)):  # noqa: ASYNC110  # nothing tells that a process has begun
        await asyncio.sleep(0.01)
    serving.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(serving.wait(), 40) == 0
    assert all(map(is_gone, started))


async def test_asking_nobody_fails_in_a_line() -> None:
    status, out, errors = await curfew("ask", "--address", "127.0.0.1:1", "--key", "k", "What is 1 + 2?")
    assert (status, out) == (6, "")
    assert errors.startswith("curfew ask: UNAVAILABLE: ")
    assert errors.count("\n") == 1


async def test_an_address_in_use_is_told_in_a_line() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        policy = ROOT / "demo" / "policy.yaml"
        for service in (
            ("worker", "--model", str(MODEL)),
            ("controller", "--policy", str(policy), "--worker", "127.0.0.1:1", "--admin", LOOPBACK),
        ):
            status, out, errors = await curfew(*service, "--listen", address)
            assert (status, out) == (2, "")
            assert f"curfew {service[0]}: cannot listen on {address}" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worker", "--model", "no/such/model"), "no/such/model/config.json"),
        (("worker", "--model", str(MODEL), "--listen", "nowhere:1"), "nowhere:1"),
        (("controller", "--policy", "no/such/policy.yaml", "--worker", "127.0.0.1:1"), "no/such/policy.yaml"),
        (
            ("controller", "--policy", str(ROOT / "pyproject.toml"), "--worker", "127.0.0.1:1"),
            "pyproject.toml:2:1",
        ),
        (("mcp", "--key", "é"), "visible ASCII"),
        (("mcp", "--transport", "http", "--listen", "127.0.0.1:99999"), "is not HOST:PORT"),
    ],
)
async def test_what_cannot_start_says_why_in_a_line_and_exits_with_2(
    arguments: tuple[str, ...], said: str
) -> None:
    status, out, errors = await curfew(*arguments)
    assert (status, out) == (2, "")
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("worker",),
        ("controller",),
        ("ask",),
        ("chat",),
        ("plan",),
        ("bench",),
        ("serve",),
        ("health",),
        ("mcp",),
        ("top",),
        ("conformance",),
    ],
)
async def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    status, out, _ = await curfew(*command, "--help")
    assert status == 0
    assert "usage" in out.lower()
