"""HTTP/1.1 requests that no honest client sends, to the door that speaks OpenAI's API and to metrics."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.fuzz.frames import Door

_BODIES = (
    b"",
    b"\xff\xfe",
    b'{"model": 1}',
    b'{"model": "model", "messages": ' + b"[" * 50_000,
    b'{"model": "model", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
    b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "stream": true}',
)


def wrong_request(door: Door, random: Random) -> Iterator[bytes]:
    """A request whose body, length or headers are wrong, or which is left before its answer."""
    method, path = (
        random.choice(("GET", "POST", "PUT", "\x00")),
        random.choice((door.method, "/", "//%ff", "*")),
    )
    body = random.choice(_BODIES)
    length = random.choice((str(len(body)), "99999999999", "-1", "x", "1", ""))
    more = random.choice(("", "x: " + "y" * 200_000, "transfer-encoding: chunked", "expect: 100-continue"))
    headers = [f"host: {door.address}", "content-type: application/json", f"content-length: {length}", more]
    headers += [f"{name}: {value}" for name, value in door.headers]
    yield f"{method} {path} HTTP/1.1\r\n".encode()
    yield "\r\n".join([*filter(None, headers), "", ""]).encode() + body


def piecemeal_request(door: Door, random: Random) -> Iterator[bytes]:
    """A proper beginning in small pieces, that stops somewhere."""
    head = f"POST {door.method} HTTP/1.1\r\nhost: {door.address}\r\ncontent-length: 1000\r\n\r\n".encode()
    for at in range(0, random.randrange(len(head)), 4):
        yield head[at : at + 4]
