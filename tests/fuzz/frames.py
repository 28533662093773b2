"""Byte streams that no gRPC client sends: broken, endless, or in bad faith.

Each is a function of (door, random) that yields what one connection sends, piece by piece, as `wire.py` does.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from random import Random

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
FRAME_BYTES = 16384
"""What a peer may send in a frame, unless told otherwise."""


class Kind(IntEnum):
    """Types of frames (RFC 9113, section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@dataclass(frozen=True, slots=True)
class Door:
    """A method that can be called. message: a valid request, serialised. headers: what a good caller adds."""

    address: str
    method: str
    message: bytes
    headers: tuple[tuple[str, str], ...] = ()


Bytes = Callable[[Door, Random], Iterator[bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; `length` is what its header says, if not the truth."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def prefixed(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def opening() -> bytes:
    """How an honest client begins."""
    return PREFACE + frame(Kind.SETTINGS, 0, 0)


def head(door: Door, *more: tuple[str, str], **pseudo: str) -> bytes:
    """The header block of a call; `pseudo` replaces its pseudo-headers by name, empty leaves one out."""
    first = {"method": "POST", "scheme": "http", "path": door.method, "authority": door.address} | pseudo
    fields = [(f":{name}", value) for name, value in first.items() if value]
    fields += [("te", "trailers"), ("content-type", "application/grpc"), *door.headers, *more]
    # An encoder of its own: blocks stand alone when they use no table that others filled.
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode(fields, huffman=False)


def call(door: Door, stream: int, *more: tuple[str, str], **pseudo: str) -> bytes:
    """The headers of a call whose message is still to come."""
    return frame(Kind.HEADERS, END_HEADERS, stream, head(door, *more, **pseudo))


def whole_call(door: Door, stream: int, *more: tuple[str, str], **pseudo: str) -> bytes:
    """A call as it should be, but for the headers given."""
    return call(door, stream, *more, **pseudo) + data(prefixed(door.message), stream, END_STREAM)


def data(payload: bytes, stream: int = 1, flags: int = 0) -> bytes:
    """A frame of data."""
    return frame(Kind.DATA, flags, stream, payload)


# What is not HTTP/2, or only at first.


def noise(door: Door, random: Random) -> Iterator[bytes]:
    """Random bytes."""
    yield random.randbytes(random.randrange(1, 1 << 16))


def preface_and_noise(door: Door, random: Random) -> Iterator[bytes]:
    """Random bytes after a proper beginning."""
    yield opening() + random.randbytes(random.randrange(1, 1 << 16))


def random_frames(door: Door, random: Random) -> Iterator[bytes]:
    """Well-formed frames of any type, flags and stream, with random content."""
    yield opening()
    for _ in range(200):
        stream = random.choice([0, 1, 2, 3, random.getrandbits(31)])
        payload = random.randbytes(random.choice([0, 1, 4, 5, 8, random.randrange(300)]))
        yield frame(random.randrange(16), random.getrandbits(8), stream, payload)


def http_1(door: Door, random: Random) -> Iterator[bytes]:
    """What a browser or a health checker would send."""
    yield f"GET {door.method} HTTP/1.1\r\nHost: {door.address}\r\n\r\n".encode()


def tls_hello(door: Door, random: Random) -> Iterator[bytes]:
    """The beginning of TLS, where none is spoken or with a hello that is none."""
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(508)


def mutated_call(door: Door, random: Random) -> Iterator[bytes]:
    """A proper call of which some bytes are wrong, missing or there twice."""
    stream = bytearray(opening() + whole_call(door, 1))
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(PREFACE), len(stream))
        match random.randrange(3):
            case 0:
                stream[at] = random.getrandbits(8)
            case 1:
                del stream[at : at + random.randrange(1, 9)]
            case _:
                stream[at:at] = stream[at : at + random.randrange(1, 9)]
    yield bytes(stream)


# Frames that end too early, are too long or stand in the wrong place.


def truncated_frame(door: Door, random: Random) -> Iterator[bytes]:
    """A frame of which most never comes."""
    kind = random.choice(list(Kind))
    yield opening() + frame(kind, 0, 1, random.randbytes(100), length=FRAME_BYTES)


def oversized_frame(door: Door, random: Random) -> Iterator[bytes]:
    """A frame longer than allowed."""
    yield opening() + call(door, 1) + frame(Kind.DATA, 0, 1, bytes(1 << 20), length=(1 << 24) - 1)


def wrong_streams(door: Door, random: Random) -> Iterator[bytes]:
    """Streams that are even, zero, idle, closed, or opened in the wrong order."""
    yield opening()
    for stream in random.sample([0, 1, 2, 5, 3, 5, 2**31 - 1, 1], k=8):
        yield random.choice([whole_call(door, stream), data(b"?", stream), frame(3, 0, stream, bytes(4))])


def wrong_settings(door: Door, random: Random) -> Iterator[bytes]:
    """Settings out of their range, unknown, or cut off."""
    yield PREFACE
    pairs = [(number, random.choice([0, 1, 2**31, 2**32 - 1])) for number in range(9)]
    body = b"".join(struct.pack(">HI", *pair) for pair in random.sample(pairs, k=4))
    yield frame(Kind.SETTINGS, 0, 0, body[: random.choice([len(body), len(body) - 1])])
    yield whole_call(door, 1)


def window_overflow(door: Door, random: Random) -> Iterator[bytes]:
    """More credit than a window can hold."""
    yield opening() + call(door, 1)
    yield frame(Kind.WINDOW_UPDATE, 0, random.choice([0, 1]), struct.pack(">I", 2**31 - 1)) * 3


# Messages whose framing lies.


def bogus_length(door: Door, random: Random) -> Iterator[bytes]:
    """A message that says it is longer, or shorter, than it is."""
    length = random.choice([2**32 - 1, 2**31, 100 << 20, len(door.message) + 1, len(door.message) // 2])
    yield opening() + call(door, 1) + data(prefixed(door.message, length=length), 1, END_STREAM)


def two_messages(door: Door, random: Random) -> Iterator[bytes]:
    """More than the one message that the method takes."""
    yield opening() + call(door, 1) + data(prefixed(door.message) * 3, 1, END_STREAM)


def no_message(door: Door, random: Random) -> Iterator[bytes]:
    """An end without a message."""
    yield opening() + frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, head(door))


def compressed_garbage(door: Door, random: Random) -> Iterator[bytes]:
    """What is said to be compressed, and is not, or by nothing known, or with a flag that does not exist."""
    encoding = random.choice(["gzip", "deflate", "identity", "br", "\x00"])
    body = prefixed(random.randbytes(1000), compressed=random.choice([1, 1, 2, 255]))
    yield opening() + call(door, 1, ("grpc-encoding", encoding)) + data(body, 1, END_STREAM)


def compression_bomb(door: Door, random: Random) -> Iterator[bytes]:
    """Fifty MiB of zeros in fifty KiB, which fit the window that a stream has at first."""
    body = prefixed(_zeros(50 << 20), compressed=1)
    yield opening() + call(door, 1, ("grpc-encoding", "gzip"))
    for at in range(0, len(body), FRAME_BYTES):
        yield data(body[at : at + FRAME_BYTES])
    yield data(b"", 1, END_STREAM)


@cache
def _zeros(count: int) -> bytes:
    return gzip.compress(bytes(count))


# Headers.


def wrong_headers(door: Door, random: Random) -> Iterator[bytes]:
    """Calls of no method, of a wrong content, with times that are none, with what must not be in a header."""
    yield opening()
    calls: list[tuple[tuple[str, str] | None, dict[str, str]]] = [
        (None, {"path": "/no.such.Service/Method"}),
        (None, {"path": "no slash"}),
        (None, {"path": "/" + "a" * 5000}),
        (None, {"path": ""}),
        (None, {"method": "GET"}),
        (None, {"scheme": ""}),
        (None, {"authority": "\x00"}),
        (("grpc-timeout", "99999999999999999H"), {}),
        (("grpc-timeout", "-1S"), {}),
        (("grpc-timeout", "0n"), {}),
        (("grpc-timeout", "x"), {}),
        (("content-type", "text/html"), {}),
        (("Upper-Case", "x"), {}),
        (("authorization", "Bearer " + "\xff" * 20), {}),
        (("authorization", "Bearer " + "k" * 4000), {}),
        (("x-nul", "a\x00b\r\nc: d"), {}),
        (("x-bin", "not base64 at all"), {}),
        (("connection", "close"), {}),
        (("traceparent", "00-" + "z" * 60), {}),
    ]
    for number, (header, pseudo) in enumerate(random.sample(calls, k=len(calls))):
        yield whole_call(door, 2 * number + 1, *([header] if header else []), **pseudo)


def huge_header(door: Door, random: Random) -> Iterator[bytes]:
    """Two MiB of headers."""
    block = head(door, *((f"x-{number}", "v" * 8000) for number in range(250)))
    yield opening() + frame(Kind.HEADERS, 0, 1, block[:FRAME_BYTES])
    for at in range(FRAME_BYTES, len(block), FRAME_BYTES):
        yield frame(Kind.CONTINUATION, 0, 1, block[at : at + FRAME_BYTES])
    yield frame(Kind.CONTINUATION, END_HEADERS, 1)


def endless_header(door: Door, random: Random) -> Iterator[bytes]:
    """A header block that is continued, and continued (CVE-2024-27316)."""
    yield opening() + frame(Kind.HEADERS, 0, 1, head(door))
    for number in range(2000):
        yield frame(Kind.CONTINUATION, 0, 1, head(door, (f"x-{number}", "v" * 2000)))


def header_bomb(door: Door, random: Random) -> Iterator[bytes]:
    """One large header in the table, named a thousand times in a byte each."""
    large = b"\x40\x05x-big\x7f\x81\x1e" + b"v" * 4000
    yield opening()
    for stream in range(1, 41, 2):
        yield frame(Kind.HEADERS, END_HEADERS, stream, head(door) + large + b"\xbe" * 10_000)


# Floods.


def flood(*frames: bytes, times: int = 5000) -> Bytes:
    """The same frames again and again."""

    def stream(door: Door, random: Random) -> Iterator[bytes]:
        yield opening()
        for _ in range(times // 100):
            yield b"".join(frames) * 100

    return stream


def rapid_reset(door: Door, random: Random) -> Iterator[bytes]:
    """Calls that are taken back at once (CVE-2023-44487)."""
    yield opening()
    for number in range(1000):
        stream = 2 * number + 1
        yield whole_call(door, stream) + frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", 8))


def dropped_streams(door: Door, random: Random) -> Iterator[bytes]:
    """A hundred calls, some complete, left alone with the connection."""
    yield opening()
    for number in range(100):
        stream = 2 * number + 1
        yield random.choice([whole_call, call])(door, stream)


def never_reading(door: Door, random: Random) -> Iterator[bytes]:
    """Calls of a peer that grants no window: nothing of an answer can be sent."""
    yield PREFACE + frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    for number in range(20):
        yield whole_call(door, 2 * number + 1)


def after_goaway(door: Door, random: Random) -> Iterator[bytes]:
    """Calls of a peer that has said that it goes."""
    yield opening() + whole_call(door, 1) + frame(Kind.GOAWAY, 0, 0, struct.pack(">II", 0, 0))
    yield whole_call(door, 3)


def piecemeal(door: Door, random: Random) -> Iterator[bytes]:
    """A proper call in pieces of a few bytes, that stops somewhere."""
    stream, size = opening() + whole_call(door, 1), random.randrange(1, 20)
    for at in range(0, random.randrange(len(stream)), size):
        yield stream[at : at + size]
