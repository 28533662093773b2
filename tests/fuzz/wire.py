"""Sends hostile byte streams over real connections, many at once."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from random import Random

from tests.fuzz import frames, http
from tests.fuzz.frames import Bytes, Door, Kind, flood


@dataclass(frozen=True, slots=True)
class Attack:
    """How a byte stream is sent.

    connections: at once. pause_s: before each piece. stay_s: how long to wait for the other side to close
    after the last piece; what is still open then is reset.
    """

    stream: Bytes
    connections: int = 1
    pause_s: float = 0.0
    stay_s: float = 0.2


ATTACKS = {
    "noise": Attack(frames.noise, 20),
    "preface and noise": Attack(frames.preface_and_noise, 20),
    "random frames": Attack(frames.random_frames, 20),
    "HTTP/1.1": Attack(frames.http_1, 5),
    "TLS hello": Attack(frames.tls_hello, 5),
    "mutated calls": Attack(frames.mutated_call, 50),
    "truncated frames": Attack(frames.truncated_frame, 10),
    "oversized frame": Attack(frames.oversized_frame, 2),
    "wrong streams": Attack(frames.wrong_streams, 10),
    "wrong settings": Attack(frames.wrong_settings, 10),
    "window overflow": Attack(frames.window_overflow, 5),
    "bogus length": Attack(frames.bogus_length, 20),
    "two messages": Attack(frames.two_messages, 5),
    "no message": Attack(frames.no_message, 5),
    "compressed garbage": Attack(frames.compressed_garbage, 20),
    "compression bomb": Attack(frames.compression_bomb, 2),
    "wrong headers": Attack(frames.wrong_headers, 3),
    "huge header": Attack(frames.huge_header, 3),
    "endless header": Attack(frames.endless_header, 2),
    "header bomb": Attack(frames.header_bomb, 3),
    "settings flood": Attack(flood(frames.frame(Kind.SETTINGS, 0, 0))),
    "ping flood": Attack(flood(frames.frame(Kind.PING, 0, 0, bytes(8)))),
    "priority flood": Attack(flood(frames.frame(Kind.PRIORITY, 0, 1, struct.pack(">IB", 0, 9)))),
    "empty data flood": Attack(flood(frames.data(b""), frames.frame(Kind.RST_STREAM, 0, 1, bytes(4)))),
    "rapid reset": Attack(frames.rapid_reset, 2),
    "dropped streams": Attack(frames.dropped_streams, 5, stay_s=0.0),
    "never reading": Attack(frames.never_reading, 3, stay_s=1.0),
    "after GOAWAY": Attack(frames.after_goaway, 5),
    "slow loris": Attack(frames.piecemeal, 100, pause_s=0.01, stay_s=1.0),
}
"""For servers of gRPC."""

HTTP_ATTACKS = {
    "noise": ATTACKS["noise"],
    "HTTP/2": Attack(frames.mutated_call, 5),
    "TLS hello": ATTACKS["TLS hello"],
    "wrong requests": Attack(http.wrong_request, 60),
    "slow loris": Attack(http.piecemeal_request, 100, pause_s=0.01, stay_s=1.0),
}
"""For servers of HTTP."""


async def run(attack: Attack, door: Door, random: Random) -> None:
    """Sends an attack, on each of its connections with random choices of its own."""
    seeds = [random.getrandbits(32) for _ in range(attack.connections)]
    await asyncio.gather(*(_send(attack, door, Random(seed)) for seed in seeds))


async def _send(attack: Attack, door: Door, random: Random) -> None:
    host, _, port = door.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    closed = asyncio.create_task(_swallow(reader))
    try:
        # The other side hangs up when it likes: that is its right.
        with contextlib.suppress(ConnectionError):
            for piece in attack.stream(door, random):
                if closed.done():
                    break
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(attack.pause_s)
        await asyncio.wait([closed], timeout=attack.stay_s)
    finally:
        closed.cancel()
        writer.transport.abort()


async def _swallow(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass
