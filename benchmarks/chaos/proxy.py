"""A TCP relay whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

CHUNK_BYTES = 64 * 1024


class Proxy:
    """Listens at one address for as long as it is open and relays to another, which may change.

    What restarts elsewhere is thus found where it was.
    """

    def __init__(self) -> None:
        self.target = ""
        """HOST:PORT of new connections."""
        self.address = ""
        """HOST:PORT at which it listens."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listens on a free port of this machine."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> int:
        """Resets all connections, whatever is on its way on them. Returns how many there were."""
        cut = len(self._open) // 2
        for writer in self._open:
            _reset(writer)
        return cut

    async def close(self) -> None:
        """Stops listening and cuts what is left."""
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        ends = {writer, far_writer}
        self._open |= ends
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._open -= ends


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN: without lingering, what is not sent is dropped."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either end is gone."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()
