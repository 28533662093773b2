"""Encrypted connections between a server and those who call it."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from curfew.rpc.addresses import is_loopback
from curfew.rpc.server import Server
from curfew.rpc.tls import (
    Dialler,
    ServerTls,
    Tls,
    add_client_options,
    add_server_options,
    client_tls,
    server_tls,
)
from tests.certificates import Authority, Identity

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[str]:
    server = Server(max_message_bytes=1 << 20, tls=tls)
    address = await server.start("127.0.0.1:0", [])
    await server.set_serving(True)
    try:
        yield address
    finally:
        await server.drain(0.0)


async def status(address: str, tls: Tls | None) -> grpc.StatusCode:
    """How one call over a connection of its own ends."""
    # Not shared with the connection of another call.
    options = (("grpc.use_local_subchannel_pool", 1),)
    return await answer(Dialler(tls, options).open(address))


async def answer(opened: grpc.aio.Channel) -> grpc.StatusCode:
    """How one call over a channel ends, which is closed then."""
    async with opened as channel:
        try:
            response = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=10
            )
            assert response.status == SERVING
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_only_who_trusts_and_is_trusted_gets_through(authority: Authority, tmp_path: Path) -> None:
    server, caller = authority.issue("server"), authority.issue("caller")
    other = Authority(tmp_path, "other")
    stranger = other.issue("stranger")
    expired = authority.issue("expired", life=-datetime.timedelta(minutes=1))
    async with serving(ServerTls(server.cert, server.key, authority.ca)) as address:
        known = Tls(authority.ca, caller.cert, caller.key)
        assert await status(address, known) is grpc.StatusCode.OK
        for unknown in (
            None,
            Tls(authority.ca),
            Tls(authority.ca, stranger.cert, stranger.key),
            Tls(authority.ca, expired.cert, expired.key),
            Tls(other.ca, caller.cert, caller.key),
            Tls(authority.ca, caller.cert, caller.key, server_name="another"),
        ):
            assert await status(address, unknown) is grpc.StatusCode.UNAVAILABLE, unknown


async def test_a_changed_certificate_is_shown_from_the_next_connection_on(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    before = authority.issue("before", file="changing")
    async with serving(ServerTls(before.cert, before.key)) as address:
        assert await status(address, Tls(authority.ca, server_name="before")) is grpc.StatusCode.OK
        authority.issue("after", file="changing")
        assert await status(address, Tls(authority.ca, server_name="after")) is grpc.StatusCode.OK
        assert await status(address, Tls(authority.ca, server_name="before")) is grpc.StatusCode.UNAVAILABLE
        # One that cannot be used changes nothing, and is told once.
        before.key.write_text("no key")
        for _ in range(2):
            assert await status(address, Tls(authority.ca, server_name="after")) is grpc.StatusCode.OK
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert told == [
        f"{before.cert} and {before.key} are not a certificate and its key in PEM form; "
        "what was read before stays in use"
    ]


async def test_a_dialler_opens_channels_with_the_files_as_they_are(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = authority.issue("server")
    caller = Authority(tmp_path, "other").issue("caller", file="dialling")
    dialler = Dialler(Tls(authority.ca, caller.cert, caller.key), [("grpc.use_local_subchannel_pool", 1)])
    async with serving(ServerTls(server.cert, server.key, authority.ca)) as address:
        assert dialler.version == 0
        assert await answer(dialler.open(address)) is grpc.StatusCode.UNAVAILABLE
        known = authority.issue("caller")
        caller.cert.write_bytes(known.cert.read_bytes())
        # A certificate without its key, as while both are being written, changes nothing.
        assert dialler.version == 0
        assert "what was read before stays in use" in caplog.text
        caller.key.write_bytes(known.key.read_bytes())
        assert dialler.version == 1
        assert await answer(dialler.open(address)) is grpc.StatusCode.OK


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_server_options(parser, "tls", "callers")
    add_server_options(parser, "admin-tls", "operators")
    add_client_options(parser, "worker", "workers")
    return parser.parse_args(arguments)


def test_options_name_the_files(authority: Authority) -> None:
    a, b = authority.issue("a"), authority.issue("b")
    ours = ("--tls-cert", str(a.cert), "--tls-key", str(a.key))
    options = parse(*ours, "--admin-tls-client-ca", str(a.ca), "--worker-ca", str(a.ca), "--worker-name", "w")
    callers = server_tls(options, "tls")
    assert callers == ServerTls(a.cert, a.key)
    assert server_tls(options, "admin-tls", otherwise=callers) == ServerTls(a.cert, a.key, a.ca)
    assert client_tls(options, "worker") == Tls(a.ca, server_name="w")
    options = parse(*ours, "--admin-tls-cert", str(b.cert), "--admin-tls-key", str(b.key))
    assert server_tls(options, "admin-tls", otherwise=callers) == ServerTls(b.cert, b.key)
    options = parse()
    assert server_tls(options, "tls") is None
    assert client_tls(options, "worker") is None


def test_what_does_not_fit_is_told_in_a_line(authority: Authority, tmp_path: Path) -> None:
    mine, other = authority.issue("mine"), authority.issue("other")
    text, locked = tmp_path / "text.pem", tmp_path / "locked.pem"
    text.write_text("no certificate")
    locked.write_bytes(encrypted_key())

    def wrong(tls: ServerTls | Tls) -> str:
        with pytest.raises((OSError, ValueError)) as caught:
            tls.credentials()
        return str(caught.value)

    none = tmp_path / "none.pem"
    assert wrong(ServerTls(none, mine.key)) == f"{none} cannot be read: No such file or directory"
    assert wrong(ServerTls(mine.cert, other.key)) == f"{other.key} is not the key of certificate {mine.cert}"
    assert wrong(ServerTls(text, mine.key)) == (
        f"{text} and {mine.key} are not a certificate and its key in PEM form"
    )
    assert wrong(ServerTls(mine.cert, locked)).startswith(f"{mine.cert} and {locked} are not")
    assert wrong(ServerTls(mine.cert, mine.key, text)) == f"{text} holds no certificates in PEM form"
    assert wrong(Tls(text)) == f"{text} holds no certificates in PEM form"
    assert wrong(Tls(mine.ca, mine.cert, other.key)).startswith(f"{other.key} is not the key")


def read_all(options: argparse.Namespace) -> None:
    server_tls(options, "tls")
    client_tls(options, "worker")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tls-cert", "{cert}"), "--tls-cert and --tls-key come together"),
        (("--tls-client-ca", "{ca}"), "--tls-client-ca needs --tls-cert"),
        (("--worker-cert", "{cert}", "--worker-key", "{key}"), "--worker-cert needs --worker-ca"),
        (("--worker-ca", "{ca}", "--worker-key", "{key}"), "--worker-cert and --worker-key come together"),
    ],
)
def test_options_that_lack_others_are_told(
    authority: Authority, arguments: tuple[str, ...], said: str
) -> None:
    one: Identity = authority.issue("one")
    options = parse(*(text.format(cert=one.cert, key=one.key, ca=one.ca) for text in arguments))
    with pytest.raises(ValueError, match=said):
        read_all(options)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_what_this_machine_alone_reaches(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def encrypted_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
