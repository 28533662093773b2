"""Is a tenant's share its own, whatever controllers it asks at? `python -m benchmarks.shares`

Two controllers with one Redis before one worker, all processes. The worker is the simulator's engine behind
real gRPC, whose steps take 8 ms however busy this machine is. Tenants of weights 4 and 1 always have more to
ask than the pool can serve. Counted are the slot-seconds that fall into a window, by the worker's account,
and each request's tokens by the part of its time that does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks.chaos.system import System, digest, key, running
from benchmarks.harness import print_machine, print_result, print_table
from curfew.client import AsyncClient, CurfewError, Sampling
from demo.problems import draw

WEIGHTS = {"heavy": 4, "light": 1}
NUMBERS = 12
"""In each sum: its reasoning goes past the budget."""
WARM_S = 5.0


@dataclass(frozen=True, slots=True)
class Ingress:
    """Callers of heavy and of light at each controller."""

    name: str
    callers: Sequence[tuple[int, int]]


INGRESS = (
    Ingress("each at its own", ((24, 0), (0, 24))),
    Ingress("mostly at its own", ((22, 2), (2, 22))),
    Ingress("the other way round", ((2, 22), (22, 2))),
    Ingress("light at both", ((24, 12), (0, 12))),
    Ingress("heavy at both", ((12, 0), (12, 24))),
)


@dataclass(frozen=True, slots=True)
class Served:
    """In a window. slot_s, tokens: by tenant. failed: requests that were not answered."""

    slot_s: dict[str, float]
    tokens: dict[str, float]
    failed: int

    @property
    def ratio(self) -> float:
        """heavy's slot-seconds to light's."""
        return self.slot_s["heavy"] / self.slot_s["light"]


def policy(reasoning_tokens: int) -> str:
    """The policy file: budgets that nothing moves."""
    budget = f"{{min: {reasoning_tokens}, max: {reasoning_tokens}, grace: 0, answer: 8}}"
    rows = (
        f"  - {{name: {name}, weight: {weight}, keys: ['{digest(name)}']}}\n"
        for name, weight in WEIGHTS.items()
    )
    defaults = f"defaults: {{mode: think, brownout: none, budget: {budget}}}\n"
    return f"apiVersion: curfew/v1\n{defaults}tenants:\n{''.join(rows)}"


async def serve(system: System, ingress: Ingress, window_s: float, warm_s: float = WARM_S) -> Served:
    """Has callers ask and ask again; counts what ends in the window after the warm-up."""
    slot_s, tokens, failed = dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 0.0), itertools.count()
    begin_s = time.monotonic() + warm_s
    end_s = begin_s + window_s

    async def one(door: str, tenant: str, seed: int) -> None:
        random = Random(seed)
        async with AsyncClient(door, key=key(tenant)) as client:
            while time.monotonic() < end_s:
                question = draw(random, NUMBERS).question
                try:
                    reply = await client.ask(question, sampling=Sampling(temperature=0.0))
                except CurfewError:
                    next(failed)
                    continue
                timings, now_s = reply.completion.timings, time.monotonic()
                held_s = timings.total_s - timings.queue_s
                within_s = max(0.0, min(now_s, end_s) - max(now_s - held_s, begin_s))
                slot_s[tenant] += within_s
                tokens[tenant] += reply.completion.usage.output_tokens * within_s / held_s

    async with asyncio.TaskGroup() as group:
        seeds = itertools.count()
        for door, callers in zip(system.doors, ingress.callers, strict=True):
            for tenant, count in zip(WEIGHTS, callers, strict=True):
                for _ in range(count):
                    group.create_task(one(door, tenant, next(seeds)))
    return Served(slot_s, tokens, next(failed))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window (%(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="of the worker (%(default)s)")
    parser.add_argument(
        "--real", action="store_true", help="a worker with the demo model, not a simulated one"
    )
    parser.add_argument("--reasoning-tokens", type=int, default=40, help="of each request (%(default)s)")
    options = parser.parse_args()
    print_machine()
    ratios = asyncio.run(measure(options))
    print_table(
        (
            "who asks where",
            "slot-seconds heavy",
            "light",
            "ratio",
            "tokens heavy",
            "light",
            "ratio",
            "failed",
        ),
        [
            (
                name,
                served.slot_s["heavy"],
                served.slot_s["light"],
                served.ratio,
                served.tokens["heavy"],
                served.tokens["light"],
                served.tokens["heavy"] / served.tokens["light"],
                served.failed,
            )
            for name, served in ratios.items()
        ],
    )
    print_result(
        {
            "window_s": options.seconds,
            "served_ratio_of_4_to_1": {name: round(served.ratio, 3) for name, served in ratios.items()},
        }
    )


async def measure(options: argparse.Namespace) -> dict[str, Served]:
    """By who asks where, one after the other at one system, which has learnt how long requests take."""
    arguments = ["--slots", str(options.slots)]
    arguments += ["--least-step-ms", "8"] if options.real else ["--speed", "demo"]
    with TemporaryDirectory() as directory, TemporaryFile() as log:
        system_of = running(
            Path(directory),
            policy(options.reasoning_tokens),
            workers=1,
            controllers=2,
            worker_arguments=arguments,
            simulated=not options.real,
            log=log,
        )
        async with system_of as system:
            return {ingress.name: await serve(system, ingress, options.seconds) for ingress in INGRESS}


if __name__ == "__main__":
    main()
