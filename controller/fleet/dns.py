"""Workers that a name in DNS stands for, such as a headless service in Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Set

log = logging.getLogger(__name__)

EVERY_S = 1.0
"""Resolvers and their caches may be slower: a record's time to live is theirs to keep."""

Resolve = Callable[[str, int], Awaitable[Set[str]]]


async def resolve(name: str, port: int) -> Set[str]:
    """The addresses of a name, each as HOST:PORT. Raises OSError when they cannot be looked up."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("it has an empty part, or one that is too long") from None
    return {_target(str(address[0]), port) for _, _, _, _, address in found}


async def follow_name(
    name: str,
    port: int,
    changed: Callable[[Set[str]], None],
    look_up: Resolve = resolve,
    every_s: float = EVERY_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Calls `changed` with all addresses of a name, first and whenever they are others; runs until cancelled.
    A failed look-up changes nothing. One look-up at a time: a resolver that hangs holds up no more than this.
    """
    known: Set[str] | None = None
    failing = False
    while True:
        try:
            found = await look_up(name, port)
        except OSError as error:
            if not failing:
                log.warning("%s cannot be looked up: %s", name, error)
            failing = True
        else:
            failing = False
            if found != known:
                changed(found)
                known = found
        await sleep(every_s)


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
