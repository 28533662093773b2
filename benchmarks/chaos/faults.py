"""What goes wrong, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from random import Random

from benchmarks.chaos.system import Member, System

STANDS_STILL_S = 5.0
REDIS_AWAY_S = 3.0


class Fault(Enum):
    """Something that breaks."""

    WORKER_KILLED = "worker killed"
    WORKER_STANDS_STILL = "worker stood still"
    REDIS_KILLED = "Redis killed"
    CONTROLLER_KILLED = "controller killed"
    WORKER_CUT_OFF = "worker cut off"
    CALLERS_CUT_OFF = "callers cut off"


@dataclass(frozen=True, slots=True)
class Due:
    """A fault and its time, in seconds from the beginning."""

    at_s: float
    fault: Fault


RHYTHM = {
    Fault.WORKER_KILLED: (5.0, 10.0),
    Fault.WORKER_STANDS_STILL: (12.0, 30.0),
    Fault.REDIS_KILLED: (26.0, 60.0),
    Fault.CONTROLLER_KILLED: (41.0, 50.0),
    Fault.WORKER_CUT_OFF: (3.0, 7.0),
    Fault.CALLERS_CUT_OFF: (8.0, 20.0),
}
"""Of each, the first time and the time between, in seconds."""


def in_rhythm(seconds: float) -> list[Due]:
    """All that is due in so long."""
    dues = [
        Due(first_s + number * every_s, fault)
        for fault, (first_s, every_s) in RHYTHM.items()
        for number in range(max(0, int((seconds - first_s) / every_s) + 1))
    ]
    return sorted((due for due in dues if due.at_s < seconds), key=lambda due: due.at_s)


@asynccontextmanager
async def breaking(
    system: System, dues: Sequence[Due], random: Random, tell: Callable[[Fault], None]
) -> AsyncIterator[asyncio.Task[None]]:
    """Breaks the system while open, in the background; yields the task, which ends with the last fault and
    with all mended. random: chooses whom it hits. tell: is told of each as it happens.
    """

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for due in dues:
                group.create_task(_at(due, system, random, tell))

    task = asyncio.create_task(all_of_them())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _at(due: Due, system: System, random: Random, tell: Callable[[Fault], None]) -> None:
    await asyncio.sleep(due.at_s)
    tell(due.fault)
    match due.fault:
        case Fault.WORKER_KILLED:
            _any(system.workers, random).kill()
        case Fault.WORKER_STANDS_STILL:
            await _any(system.workers, random).stand_still(STANDS_STILL_S)
        case Fault.REDIS_KILLED:
            system.redis.stop()
            await asyncio.sleep(REDIS_AWAY_S)
            await asyncio.to_thread(system.redis.start)
        case Fault.CONTROLLER_KILLED:
            _any(system.controllers, random).kill()
        case Fault.WORKER_CUT_OFF:
            _any(system.workers, random).proxy.cut()
        case Fault.CALLERS_CUT_OFF:
            _any(system.controllers, random).proxy.cut()


def _any(members: Sequence[Member], random: Random) -> Member:
    """One of those that run, or of all where none does."""
    return random.choice([member for member in members if member.runs] or list(members))
