"""Every form of URL, each against a server of its kind."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from controller.state.connect import open_store
from controller.state.store import StoreError, WorkerRecord
from tests.controller.state.conftest import Connect
from tests.controller.state.servers import Server, free_port, serving

WORKER = WorkerRecord("w", "127.0.0.1:7300", "nano", "0.1", capacity=16)


async def works(connect: Connect, url: str) -> bool:
    await connect(url).announce(WORKER, 60)
    return await connect(url).workers() == {"w": WORKER}


async def test_redis_with_a_database_and_a_password(tmp_path: Path, connect: Connect) -> None:
    with serving(tmp_path, "--requirepass", "pass:word") as server:
        assert await works(connect, f"redis://:pass%3Aword@127.0.0.1:{server.port}/3")
        assert await connect(f"redis://:pass%3Aword@127.0.0.1:{server.port}/4").workers() == {}
        with pytest.raises(StoreError):
            await connect(f"redis://:wrong@127.0.0.1:{server.port}").workers()


async def test_a_socket(tmp_path: Path, connect: Connect) -> None:
    with serving(tmp_path, "--unixsocket", str(tmp_path / "redis.sock")):
        assert await works(connect, f"unix://{tmp_path}/redis.sock")


async def test_a_cluster_by_one_of_its_servers(cluster_url: str, connect: Connect) -> None:
    assert await works(connect, cluster_url)


async def test_a_service_that_a_sentinel_knows(tmp_path: Path, connect: Connect) -> None:
    directory = tmp_path / "sentinel"
    directory.mkdir()
    with serving(tmp_path) as server:
        own = directory / "sentinel.conf"
        own.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
        with serving(directory, program=[str(own), "--sentinel"]) as sentinel:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
            assert await works(connect, f"redis+sentinel://{hosts}/main")
            assert await connect(f"redis://127.0.0.1:{server.port}").workers() == {"w": WORKER}
            with pytest.raises(StoreError):
                await connect(f"redis+sentinel://{hosts}/other").workers()


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A server's; `cert.pem` is what vouches for it."""
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    command += ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(command, capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


async def test_tls(server: Server, certificate: ssl.SSLContext, tmp_path: Path, connect: Connect) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    # This server's build knows no TLS, so it stands behind one that does.
    front = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=certificate)
    port = front.sockets[0].getsockname()[1]
    assert await works(connect, f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/cert.pem")
    with pytest.raises(StoreError, match=r"(?i)certificate"):
        await connect(f"rediss://127.0.0.1:{port}").workers()
    front.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis+sentinel://localhost",
        "redis+sentinel:///main",
        "redis+sentinel://localhost/main/first",
        "redis+cluster://",
        "redis+cluster://a:1,,b:2",
        "redis://localhost:port",
    ],
)
def test_what_is_no_url_of_a_store_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        open_store(url, 1.0)
