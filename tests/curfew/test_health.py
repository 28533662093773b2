"""`curfew health` against a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curfew.cli.main import app
from curfew.rpc.server import Server
from curfew.rpc.tls import ServerTls
from tests.certificates import Authority


@asynccontextmanager
async def serving(tls: ServerTls | None = None) -> AsyncIterator[tuple[Server, str]]:
    server = Server(max_message_bytes=1 << 20, tls=tls)
    address = await server.start("127.0.0.1:0", ["curfew.v1.WorkerService"])
    try:
        yield server, address
    finally:
        await server.drain(0.0)


async def health(*arguments: str) -> Result:
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["health", *arguments]))


async def test_a_service_serves_or_does_not() -> None:
    async with serving() as (server, address):
        before = await health(address)
        assert (before.exit_code, before.stdout) == (1, f"{address}: NOT_SERVING\n")
        await server.set_serving(True)
        after = await health(address)
        assert (after.exit_code, after.stdout) == (0, f"{address}: SERVING\n")


async def test_all_the_parts_that_are_asked_for_must_serve() -> None:
    async with serving() as (server, address):
        await server.set_serving(True)
        await server.set_detail("curfew.policy", False)
        named = ("--service", "curfew.v1.WorkerService", "--service", "curfew.policy")
        refused = await health(address, *named)
        assert refused.exit_code == 1
        assert refused.stdout.splitlines() == [
            f"{address} curfew.v1.WorkerService: SERVING",
            f"{address} curfew.policy: NOT_SERVING",
        ]
        await server.set_detail("curfew.policy", True)
        assert (await health(address, *named)).exit_code == 0
        unknown = await health(address, "--service", "curfew.v2.WorkerService")
        assert (unknown.exit_code, unknown.stdout) == (
            1,
            f"{address} curfew.v2.WorkerService: SERVICE_UNKNOWN\n",
        )


async def test_nobody_there_is_another_status_than_not_serving() -> None:
    done = await health("127.0.0.1:1")
    assert done.exit_code == 2
    assert done.stderr.startswith("127.0.0.1:1: UNAVAILABLE: ")


async def test_somebody_who_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "127.0.0.1:{1}".format(*silent.getsockname())
        done = await health(address, "--timeout", "100ms")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{address}: DEADLINE_EXCEEDED: ")


async def test_a_service_that_asks_for_certificates_is_shown_one(tmp_path: Path) -> None:
    one = Authority(tmp_path).issue("worker.internal")
    async with serving(ServerTls(one.cert, one.key, one.ca)) as (server, address):
        await server.set_serving(True)
        files = ("--ca", str(one.ca), "--cert", str(one.cert), "--cert-key", str(one.key))
        assert (await health(address, *files)).exit_code == 0
        assert (await health(address, *files, "--server-name", "worker.internal")).exit_code == 0
        assert (await health(address, *files, "--server-name", "another")).exit_code == 2
        assert (await health(address)).exit_code == 2


@pytest.mark.parametrize("option", [("--ca", "no/file"), ("--timeout", "soon")])
def test_a_wrong_option_is_told(option: tuple[str, str]) -> None:
    assert CliRunner().invoke(app, ["health", *option]).exit_code == 2
