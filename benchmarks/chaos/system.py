"""The system that is broken: workers, controllers and Redis, each a process behind an address that stays."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.chaos.proxy import Proxy
from benchmarks.redis_server import Server
from curfew.processes import Service, start_service

MODEL = Path(__file__).parents[2] / "demo" / "model"
LOOPBACK = "127.0.0.1:0"


class Member:
    """A process that dies and is started again, at the same address."""

    def __init__(self, proxy: Proxy, start: Callable[[], Awaitable[Service]]) -> None:
        self.proxy = proxy
        self._start = start
        self._service: Service | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether it is there to be broken."""
        return self._service is not None

    @property
    def own_address(self) -> str:
        """Past the proxy."""
        return self.proxy.target

    async def start(self) -> None:
        """Returns once it is ready."""
        self._service = await self._start()
        self.proxy.target = self._service.addresses["listen"]

    def kill(self) -> None:
        """SIGKILL; and at once, as a cluster does, it is begun anew. No effect on one that is starting."""
        if self._service is not None:
            self._service.process.kill()
            self._starting = asyncio.create_task(self._again(self._service))
            self._service = None

    async def stand_still(self, seconds: float) -> None:
        """SIGSTOP for so long, unless it is killed meanwhile: its connections stay, and nothing comes."""
        service = self._service
        if service is not None:
            service.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    service.process.send_signal(signal.SIGCONT)

    async def ready(self) -> None:
        """Returns once it runs."""
        if self._starting is not None:
            await self._starting

    async def stop(self) -> None:
        """Ends it for good."""
        await self.ready()
        if self._service is not None:
            await self._service.stop()
        await self.proxy.close()

    async def _again(self, killed: Service) -> None:
        await killed.process.wait()
        await self.start()


@dataclass(frozen=True, slots=True)
class System:
    """All that runs."""

    redis: Server
    workers: Sequence[Member]
    controllers: Sequence[Member]

    @property
    def doors(self) -> list[str]:
        """The controllers' addresses, as callers know them."""
        return [controller.proxy.address for controller in self.controllers]


def key(tenant: str) -> str:
    """A tenant's API key."""
    return f"key-{tenant}"


def digest(tenant: str) -> str:
    """The same, as a policy file holds it."""
    return f"sha256:{hashlib.sha256(key(tenant).encode()).hexdigest()}"


@asynccontextmanager
async def running(
    directory: Path,
    policy: str,
    *,
    workers: int,
    controllers: int,
    worker_arguments: Sequence[str] = (),
    simulated: bool = False,
    log: IO[bytes] | None = None,
) -> AsyncIterator[System]:
    """Starts a system, and stops what is left of it. directory: for its files. simulated: workers of
    `benchmarks.scale.workers` instead of those with the demo model. log: where the processes' standard error
    goes; None leaves it on this one's.
    """
    file = directory / "policy.yaml"
    file.write_text(policy)
    redis = Server(directory)
    await asyncio.to_thread(redis.start)
    async with AsyncExitStack() as stack:
        stack.callback(redis.stop)

        async def members(count: int, start: Callable[[], Awaitable[Service]]) -> list[Member]:
            made = []
            for _ in range(count):
                proxy = Proxy()
                await proxy.start()
                member = Member(proxy, start)
                stack.push_async_callback(member.stop)
                made.append(member)
            async with asyncio.TaskGroup() as group:
                for member in made:
                    group.create_task(member.start())
            return made

        module = "benchmarks.scale.workers" if simulated else "worker"
        serving = ["--count", "1"] if simulated else ["--model", str(MODEL), "--listen", LOOPBACK]
        serving += worker_arguments
        pool = await members(workers, lambda: start_service(module, serving, log=log))
        deciding = ["--policy", str(file), "--state", redis.url, "--state-optional"]
        deciding += ["--listen", LOOPBACK, "--admin", LOOPBACK]
        deciding += [part for worker in pool for part in ("--worker", worker.proxy.address)]
        doors = await members(controllers, lambda: start_service("controller", deciding, log=log))
        yield System(redis, pool, doors)
