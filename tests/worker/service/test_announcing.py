"""A worker tells controllers that it is there."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError
from curfew.rpc.server import Server
from curfew.v1.registry_pb2 import AnnounceRequest, AnnounceResponse
from curfew.v1.registry_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from worker.service.announcing import Announcer, add_arguments, advertised

LEASE = Duration(nanos=300_000_000)


class Registry(RegistryServiceServicer):
    """Keeps what it is told; refuses while `away`."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[AnnounceRequest] = asyncio.Queue()
        self.away = False

    async def Announce(
        self, request: AnnounceRequest, context: Context[AnnounceRequest, AnnounceResponse]
    ) -> AnnounceResponse:
        self.told.put_nowait(request)
        if self.away:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "come again")
        return AnnounceResponse(lease=LEASE)


@asynccontextmanager
async def serving(registry: Registry, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = Server(max_message_bytes=1 << 20)
    add_RegistryServiceServicer_to_server(registry, server.grpc)
    try:
        yield await server.start(address, ["curfew.v1.RegistryService"])
    finally:
        await server.drain(0.0)


def announcer(*controllers: str) -> Announcer:
    return Announcer(controllers, lambda: AnnounceRequest(address="w:1", instance="i"), lambda: 0.5)


async def test_it_announces_itself_again_and_again_then_that_it_drains_then_that_it_is_gone() -> None:
    registry = Registry()
    async with serving(registry) as address:
        worker = announcer(address)
        worker.start()
        first, second = [await registry.told.get() for _ in range(2)]
        assert first == second == AnnounceRequest(address="w:1", instance="i")
        worker.drain()
        while not (told := await registry.told.get()).draining:
            pass
        assert not told.gone
        await worker.end()
        while not (told := await registry.told.get()).gone:
            pass
        assert told.draining
        assert registry.told.empty()


async def test_every_controller_is_told_whatever_the_others_do() -> None:
    registries = [Registry(), Registry()]
    registries[0].away = True
    async with serving(registries[0]) as one, serving(registries[1]) as two:
        worker = announcer(one, two, "127.0.0.1:1")
        worker.start()
        for registry in registries:
            for _ in range(3):
                assert (await registry.told.get()).instance == "i"
        registries[0].away = False
        await worker.end()


async def test_a_controller_that_comes_back_is_told_soon() -> None:
    registry = Registry()
    async with serving(registry) as address:
        pass
    worker = announcer(address)
    worker.start()
    async with serving(registry, address):
        assert (await registry.told.get()).instance == "i"
        await worker.end()


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_what_it_advertises_is_where_it_listens_unless_told_otherwise() -> None:
    assert advertised(options(), "127.0.0.1:7210") == "127.0.0.1:7210"
    assert advertised(options("--advertise", "gpu-3:7210"), "0.0.0.0:7210") == "gpu-3:7210"
    with pytest.raises(ValueError, match=r"0\.0\.0\.0:7210 stands for every address"):
        advertised(options(), "0.0.0.0:7210")


def test_an_announcement_goes_to_a_host_and_port(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--announce", "controller")
    assert "'controller' is not HOST:PORT" in capsys.readouterr().err
