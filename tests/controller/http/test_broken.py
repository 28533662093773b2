"""Requests that turn out to be none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.controller.http.door import CHAT, House, house

BEGINNING = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nauthorization: Bearer ?\r\n\r\n"
)
"""Of a request that is refused before its body is read."""
NO_CHUNK = b"this is no chunk\r\n"


@asynccontextmanager
async def connected(to: House) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(to.client.base_url.host, to.client.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_what_is_no_http_is_answered_once_whatever_the_request_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as door, connected(door) as (reader, writer):
        writer.write(BEGINNING.encode() + NO_CHUNK)
        answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_what_is_no_http_after_the_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with house() as door, connected(door) as (reader, writer):
        writer.write(BEGINNING.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.write(NO_CHUNK)
        assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 10)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
