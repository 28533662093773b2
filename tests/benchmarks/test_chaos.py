"""What the account of chaos rests on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.chaos.faults import Fault, in_rhythm
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.truth import Difference, difference
from curfew.client import Phase

TRUTH = [(Phase.REASONING, token) for token in (1, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize(
    ("came", "found"),
    [
        ([1, 2, 3, 4, 5, 6], Difference()),
        ([1, 2, 3, 2, 3, 4, 5, 6], Difference(duplicated=2)),
        ([1, 2, 5, 6], Difference(missing=2)),
        ([1, 2, 9, 4, 5, 6], Difference(wrong=1)),
        ([1, 2, 3, 8, 9, 4, 5, 6], Difference(wrong=2)),
        ([1, 2, 3], Difference(missing=3)),
    ],
)
def test_what_came_differs_from_the_truth_by(came: list[int], found: Difference) -> None:
    assert difference([(Phase.REASONING, token) for token in came], TRUTH, whole=True) == found


def test_the_beginning_of_the_truth_is_all_that_a_broken_stream_must_be() -> None:
    assert difference(TRUTH[:3], TRUTH, whole=False) == Difference()
    assert difference([*TRUTH[:2], *TRUTH[1:3]], TRUTH, whole=False) == Difference(duplicated=1)


def test_a_token_in_another_phase_is_wrong() -> None:
    came = [*TRUTH[:5], (Phase.ANSWER, 6)]
    assert difference(came, TRUTH, whole=True) == Difference(wrong=1)


def test_three_minutes_have_every_fault() -> None:
    assert {due.fault for due in in_rhythm(180.0)} == set(Fault)
    assert sum(due.fault is Fault.WORKER_KILLED for due in in_rhythm(180.0)) == 18


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through a proxy to one who sends everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = Proxy()
    proxy.target = "{}:{}".format(*server.sockets[0].getsockname())
    await proxy.start()
    host, port = proxy.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield proxy, reader, writer
    finally:
        writer.close()
        await proxy.close()
        server.close()


async def test_a_proxy_relays_until_it_is_cut() -> None:
    async with relayed() as (proxy, reader, writer):
        writer.write(b"word")
        assert await reader.readexactly(4) == b"word"
        assert proxy.cut() == 1
        with pytest.raises(OSError, match="reset"):
            await reader.read()
