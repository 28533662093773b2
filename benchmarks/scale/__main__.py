"""Does cost grow no faster than load? `python -m benchmarks.scale`

1, 2 and 4 controllers with one Redis before 1 to 64 simulated workers (the simulator's engine behind real
gRPC), all processes of this machine. Each controller gets the same load, so that the load grows with their
number. Measured are the processor time of the controllers for a request, and without any requests, by Linux's
account; what the store is asked; and how much longer a request takes than its worker says. docs/scale.md
draws the conclusions.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import quantiles
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING

import grpc
from rich.console import Console

from benchmarks.chaos.system import LOOPBACK, digest, key
from benchmarks.harness import print_machine, print_result, print_table
from benchmarks.proxy.__main__ import cpu_s
from benchmarks.redis_server import Server
from curfew.processes import Service, start_service
from curfew.rpc.durations import seconds
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub

if TYPE_CHECKING:
    from curfew.v1.reasoning_pb2_grpc import ReasoningServiceAsyncStub

TENANTS = tuple(f"tenant-{number}" for number in range(8))
SETTLE_S = 1.0
"""After a start, before anything is measured."""


@dataclass(frozen=True, slots=True)
class Cost:
    """requests: answered. failed: the others. cpu_s: of all controllers while they served. took_s: for how
    long. idle_cpu_s: of one controller in a second without requests. scripts, idle_scripts: that the store
    ran for all controllers in a second, with requests and without. script_s: that one takes there. added_s:
    of each request, beyond its worker's time.
    """

    controllers: int
    workers: int
    requests: int
    failed: int
    took_s: float
    cpu_s: float
    idle_cpu_s: float
    scripts: float
    idle_scripts: float
    script_s: float
    added_s: Sequence[float]

    @property
    def cpu_of_request_s(self) -> float:
        """Beyond what controllers take without any."""
        return (self.cpu_s - self.idle_cpu_s * self.controllers * self.took_s) / self.requests

    @property
    def scripts_of_request(self) -> float:
        """Beyond those that are run without any."""
        return (self.scripts - self.idle_scripts) * self.took_s / self.requests

    @property
    def row(self) -> tuple[object, ...]:
        """For the table."""
        parts = quantiles(self.added_s, n=100)
        return (
            f"{self.controllers} × {self.workers}",
            self.requests / self.took_s,
            self.failed,
            1e3 * self.cpu_of_request_s,
            1 / self.cpu_of_request_s,
            1e3 * self.idle_cpu_s,
            self.scripts_of_request,
            1e6 * self.script_s,
            1e3 * parts[49],
            1e3 * parts[98],
        )


def policy() -> str:
    """Tenants whose requests the store is asked about, and which are planned with a deadline."""
    limits = "limits: {rate: 10000/s, concurrency: 1000}"
    rows = (f"  - {{name: {name}, keys: ['{digest(name)}'], {limits}}}\n" for name in TENANTS)
    defaults = "defaults: {objectives: {deadline: 5s}, budget: {max: 16, grace: 0, answer: 8}}\n"
    return f"apiVersion: curfew/v1\n{defaults}tenants:\n{''.join(rows)}"


def scripts_run(redis: Server) -> tuple[int, float]:
    """By the store since it started, and the seconds that they took it."""
    for line in redis.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_evalsha:"):
            numbers = dict(pair.split("=") for pair in line.partition(":")[2].split(","))
            return int(numbers["calls"]), float(numbers["usec"]) * 1e-6
    return 0, 0.0


async def load(doors: Sequence[str], rate: float, for_s: float) -> tuple[list[float], int]:
    """Requests at each door at a rate; what each took beyond its worker's time, and how many failed."""
    added_s: list[float] = []
    failed = itertools.count()
    question = [pb.Message(role=pb.ROLE_USER, content="What is 12 + 37 + 45?")]

    async def one(stub: ReasoningServiceAsyncStub, tenant: str, at_s: float) -> None:
        await asyncio.sleep(at_s - time.monotonic())
        request = reasoning_pb2.GenerateRequest(messages=question)
        metadata = (("authorization", f"Bearer {key(tenant)}"),)
        sent_s = time.monotonic()
        try:
            async for event in stub.Generate(request, metadata=metadata, timeout=20):
                if event.HasField("completion"):
                    total_s = seconds(event.completion.timings.total)
                    added_s.append(time.monotonic() - sent_s - total_s)
        except grpc.aio.AioRpcError:
            next(failed)

    async with AsyncExitStack() as stack:
        began_s, random = time.monotonic() + 0.1, Random(0)
        async with asyncio.TaskGroup() as group:
            for door in doors:
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(door))
                stub = ReasoningServiceStub(channel)
                for number in range(round(rate * for_s)):
                    at_s = began_s + (number + random.random()) / rate
                    group.create_task(one(stub, random.choice(TENANTS), at_s))
    return added_s, next(failed)


async def measure(
    redis: Server,
    workers: Sequence[str],
    controllers: Sequence[Service],
    options: argparse.Namespace,
) -> Cost:
    """One number of controllers before one number of workers."""
    doors = [controller.addresses["listen"] for controller in controllers]
    await load(doors, options.rate, SETTLE_S)  # connections, caches

    def cpu() -> float:
        return sum(map(cpu_s, controllers))

    before = (time.monotonic(), cpu(), scripts_run(redis))
    await asyncio.sleep(options.idle_seconds)
    idle = (time.monotonic(), cpu(), scripts_run(redis))
    added_s, failed = await load(doors, options.rate, options.seconds)
    after = (time.monotonic(), cpu(), scripts_run(redis))
    idle_s, took_s = idle[0] - before[0], after[0] - idle[0]
    return Cost(
        controllers=len(controllers),
        workers=len(workers),
        requests=len(added_s),
        failed=failed,
        took_s=took_s,
        cpu_s=after[1] - idle[1],
        idle_cpu_s=(idle[1] - before[1]) / idle_s / len(controllers),
        scripts=(after[2][0] - idle[2][0]) / took_s,
        idle_scripts=(idle[2][0] - before[2][0]) / idle_s,
        script_s=(after[2][1] - before[2][1]) / (after[2][0] - before[2][0]),
        added_s=added_s,
    )


async def run(options: argparse.Namespace) -> list[Cost]:
    """All numbers of both."""
    console = Console(stderr=True)
    with TemporaryDirectory() as directory, TemporaryFile() as log:
        file = Path(directory) / "policy.yaml"
        file.write_text(policy())
        redis = Server(Path(directory))
        await asyncio.to_thread(redis.start)
        found = []
        try:
            pool = await start_service(
                "benchmarks.scale.workers", ["--count", str(max(options.workers))], log=log
            )
            try:
                addresses = pool.addresses["listen"].split(",")
                for count in options.workers:
                    async with AsyncExitStack() as stack:
                        controllers: list[Service] = []
                        arguments = ["--policy", str(file), "--state", redis.url, "--log-level", "warning"]
                        arguments += ["--listen", LOOPBACK, "--admin", LOOPBACK]
                        for worker in addresses[:count]:
                            arguments += ["--worker", worker]
                        for number in options.controllers:
                            while len(controllers) < number:
                                controllers.append(await start_service("controller", arguments, log=log))
                                stack.push_async_callback(controllers[-1].stop)
                            with console.status(f"{number} controllers, {count} workers …"):
                                cost = await measure(redis, addresses[:count], controllers, options)
                            found.append(cost)
            finally:
                await pool.stop()
        finally:
            redis.stop()
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controllers", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second at each controller")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load, each time (%(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=2.0, help="without, each time (%(default)s)")
    options = parser.parse_args()
    options.controllers.sort()
    if not Path("/proc/self/schedstat").exists():
        parser.error("this needs Linux, which accounts for processor time by the nanosecond")
    costs = asyncio.run(run(options))
    print_machine()
    print(
        "controllers' processor ms for a request and requests for a second of it; processor ms that one takes"
    )
    print(
        "in a second without any; scripts of the store for a request; ms that are added to the worker's own"
    )
    header = (
        "controllers × workers",
        "requests/s",
        "failed",
        "cpu",
        "per core",
        "idle",
        "scripts",
        "µs each",
        "p50",
        "p99",
    )
    print_table(header, [cost.row for cost in costs])
    print_result(
        {
            "requests_per_core_s": {
                f"{cost.controllers}x{cost.workers}": round(1 / cost.cpu_of_request_s) for cost in costs
            },
            "idle_cpu_ms_per_s": {
                f"{cost.controllers}x{cost.workers}": round(1e3 * cost.idle_cpu_s, 1) for cost in costs
            },
            "added_p50_ms": {
                f"{cost.controllers}x{cost.workers}": round(1e3 * quantiles(cost.added_s, n=100)[49], 2)
                for cost in costs
            },
        }
    )


if __name__ == "__main__":
    main()
