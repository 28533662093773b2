"""Starts Curfew's services as processes of this machine and stops them in order. No supervisor: what dies
stays dead.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

_READY = re.compile(r"^curfew (\w+) ready:(.*)$")


class ServiceError(Exception):
    """A service did not start. What it said of that is on its standard error."""


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a service. -P: it is the installed one, whatever lies in the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


@dataclass(frozen=True, slots=True)
class Service:
    """A running service. addresses: by flag, as its ready line tells them, such as {"listen":
    "127.0.0.1:7210"}.
    """

    name: str
    process: Process
    addresses: dict[str, str]

    async def stop(self, timeout_s: float = 35.0) -> int:
        """Sends SIGTERM and waits until it has drained; kills it after `timeout_s`, or when this is
        cancelled. Returns its exit status, negative for a signal that ended it.
        """
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(timeout_s):
                    await self.process.wait()
            except TimeoutError:
                pass
            finally:
                await _kill(self.process)
        assert self.process.returncode is not None
        return self.process.returncode


async def start_service(
    module: str, arguments: Sequence[str], *, log: IO[bytes] | None = None, timeout_s: float = 120.0
) -> Service:
    """Runs `python -m module arguments` and waits for its ready line, the only one on its standard output.

    log: where its standard error goes; None leaves it on this process's. Raises ServiceError when it ends or
    is not ready within `timeout_s`. When this is cancelled, nothing is left running.
    """
    line = command(module, arguments)
    process = await asyncio.create_subprocess_exec(
        *line,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=log,
        # Ctrl-C in a terminal reaches the whole foreground group: the parent alone decides who stops when.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await _ready(process)
    except TimeoutError:
        await _kill(process)
        raise ServiceError(f"not ready after {timeout_s:g} s: {' '.join(line)}") from None
    except BaseException:
        await _kill(process)
        raise
    if addresses is None:
        raise ServiceError(f"ended with {process.returncode}: {' '.join(line)}")
    return Service(module, process, addresses)


async def _ready(process: Process) -> dict[str, str] | None:
    """The addresses in the ready line; None if the process ends without one."""
    assert process.stdout is not None
    async for line in process.stdout:
        match = _READY.match(line.decode(errors="replace").rstrip())
        if match:
            return dict(pair.split("=", 1) for pair in match[2].split())
    await process.wait()
    return None


async def _kill(process: Process) -> None:
    """Ends a process at once, if it has not ended."""
    if process.returncode is None:
        process.kill()
    await process.wait()
