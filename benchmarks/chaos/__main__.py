"""Does the fleet lose a request? `python -m benchmarks.chaos`

Runs 2 controllers, 3 workers with the demo model and Redis as processes, has tenants of all kinds ask, and
meanwhile kills workers, a controller and Redis, has a worker stand still, and cuts connections. Each stream's
tokens are then compared with those of the same request, cut at the same token, run by itself. What was killed
is started again at once, as Kubernetes would; a caller whose stream broke off, since its controller died,
asks anew at the other.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from benchmarks.chaos.callers import Ended, Outcome, ask_all, asks, policy
from benchmarks.chaos.faults import Fault, breaking, in_rhythm
from benchmarks.chaos.system import running
from benchmarks.chaos.tally import Tally, cases, tally
from benchmarks.chaos.truth import truths
from benchmarks.harness import print_machine, print_result, print_table


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of chaos (%(default)s)")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second (%(default)s)")
    parser.add_argument("--least-step-ms", type=float, default=8.0, help="of a worker (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of requests and faults")
    parser.add_argument("--log", type=Path, help="file for what the processes say (none)")
    options = parser.parse_args()
    print_machine()
    result, faults = asyncio.run(measure(options))
    print_table(("faults", "times"), [(fault.value, faults[fault]) for fault in Fault])
    print()
    print_table(
        ("requests", "answered", "failed cleanly", "lost", "asked anew", "moved", "deadlines kept"),
        [
            (
                result.requests,
                result.answered,
                result.failed_cleanly,
                result.lost,
                result.broken_off,
                result.moved,
                result.attainment,
            )
        ],
    )
    print_result(
        {
            "requests": result.requests,
            "answered": result.answered,
            "lost": result.lost,
            "duplicated_tokens": result.difference.duplicated,
            "missing_tokens": result.difference.missing,
            "wrong_tokens": result.difference.wrong,
            "budget_overshoot": result.budget_overshoot,
            "failed_cleanly": result.failed_cleanly,
            "asked_anew": result.broken_off,
            "moved": result.moved,
            "faults": faults.total(),
            "attainment_during_chaos": round(result.attainment, 4),
        }
    )


async def measure(options: argparse.Namespace) -> tuple[Tally, Counter[Fault]]:
    """What the callers saw, and what was done to them."""
    random = Random(f"curfew-chaos-{options.seed}")
    what = asks(round(options.seconds * options.rate), random)
    faults: Counter[Fault] = Counter()
    seen: Counter[Outcome] = Counter()
    console = Console(stderr=True)
    with TemporaryDirectory() as directory, (options.log or Path("/dev/null")).open("wb") as log:
        arguments = ["--least-step-ms", str(options.least_step_ms)]
        system_of = running(
            Path(directory), policy(), workers=3, controllers=2, worker_arguments=arguments, log=log
        )
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("starting", total=len(what))

            def fault(which: Fault) -> None:
                faults[which] += 1
                progress.update(task, description=which.value)

            def end(ended: Ended) -> None:
                seen[ended.outcome] += 1
                lost = seen[Outcome.LOST]
                progress.update(task, advance=1, description=f"{faults.total()} faults, {lost} lost")

            async with system_of as system:
                async with breaking(system, in_rhythm(options.seconds), random, fault) as broken:
                    ended = await ask_all(system.doors, what, 1 / options.rate, end)
                    await broken
                progress.update(task, description="running them by themselves")
                judge = system.workers[0]
                await judge.ready()
                return tally(ended, await truths(judge.own_address, cases(ended))), faults


if __name__ == "__main__":
    main()
