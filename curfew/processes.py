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
    """A service did not start. The message holds what it said."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running service. addresses: by flag, as its ready line tells them, such as {"listen":
    "127.0.0.1:7210"}.
    """

    name: str
    process: Process
    addresses: dict[str, str]

    async def stop(self, timeout_s: float = 35.0) -> int:
        """Sends SIGTERM, waits until it has drained, and kills it after `timeout_s`. Returns its exit
        status.
        """
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), timeout_s)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


async def start_service(
    module: str, arguments: Sequence[str], *, log: IO[bytes] | None = None, timeout_s: float = 120.0
) -> Service:
    """Runs `python -m module arguments` and waits for its ready line.

    log: where its standard error goes; None leaves it on this process's. Raises ServiceError when it ends or
    does not get ready within `timeout_s`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=log,
        # Ctrl-C in a terminal reaches the whole foreground group: the parent alone decides who stops when.
        start_new_session=True,
    )
    try:
        addresses = await asyncio.wait_for(_ready(process), timeout_s)
    except TimeoutError:
        addresses = None
    if addresses is None:
        status = "did not get ready" if process.returncode is None else f"ended with {process.returncode}"
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise ServiceError(f"{module} {' '.join(arguments)}: {status}")
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
