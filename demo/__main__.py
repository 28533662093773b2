"""`make demo`: one worker, one controller, three tenants with different promises, watched live.

Exits with 0 only if every request was answered within its budget and the three ways of answering were all
seen.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import Progress
from rich.rule import Rule

from curfew import AsyncClient, CurfewError
from curfew.processes import Service, ServiceError, start_service
from curfew.show import Lines, StreamView
from demo.problems import Problem, draw, is_right
from demo.report import Outcome, faults, summary

HERE = Path(__file__).parent
TENANTS = {
    "analyst": "has time: thinks as long as it needs",
    "support": "is in a hurry: thinking is cut, the answer is forced",
    "autocomplete": "cannot wait: answers at once",
}
WATCHED_COUNTS = (2, 5, 11)
CROWD = 24
# The demo model takes about a millisecond a token even on a laptop's CPU. So that deadlines, budgets and
# streams look as they do for a large model on a GPU, the worker takes as long for a step as such a model
# would.
LEAST_STEP_MS = 8


def main() -> None:
    """Runs the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="of the problems")
    parser.add_argument("--svg", type=Path, help="also write what is shown as a picture")
    options = parser.parse_args()
    console = Console(record=options.svg is not None, highlight=False, width=100 if options.svg else None)
    try:
        found = asyncio.run(demonstrate(console, Random(options.seed)))
    except (ServiceError, CurfewError) as error:
        console.print(f"[bold red]failed:[/] {error}")
        raise SystemExit(1) from None
    if options.svg is not None:
        console.save_svg(str(options.svg), title="make demo")
    for fault in found:
        console.print(f"[bold red]failed:[/] {fault}")
    raise SystemExit(1 if found else 0)


async def demonstrate(console: Console, random: Random) -> list[str]:
    """Starts the services, asks, shows. Returns what went wrong."""
    with tempfile.TemporaryFile() as log:
        try:
            async with AsyncExitStack() as stack:
                with console.status("starting a worker and a controller …"):
                    worker = await start_service(
                        "worker",
                        [
                            *("--model", str(HERE / "model"), "--listen", "127.0.0.1:0"),
                            *("--least-step-ms", str(LEAST_STEP_MS)),
                        ],
                        log=log,
                    )
                    statuses = await _stop_at_exit(stack, worker)
                    controller = await start_service(
                        "controller",
                        [
                            *("--policy", str(HERE / "policy.yaml"), "--worker", worker.addresses["listen"]),
                            *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
                        ],
                        log=log,
                    )
                    await _stop_at_exit(stack, controller, statuses)
                address = controller.addresses["listen"]
                watched = await _watch(console, address, random)
                crowd = await _crowd(console, address, random)
        except ServiceError as error:
            log.seek(0)
            raise ServiceError(f"{error}\n{log.read().decode(errors='replace')}") from None
    outcomes = [*watched, *crowd]
    console.print(summary(outcomes, list(TENANTS)))
    stopped = [f"a service ended with status {status}" for status in statuses if status]
    return [*faults(outcomes), *stopped]


async def _stop_at_exit(
    stack: AsyncExitStack, service: Service, statuses: list[int] | None = None
) -> list[int]:
    """Has a service stopped at the stack's end, and its exit status noted."""
    noted: list[int] = [] if statuses is None else statuses

    async def stop() -> None:
        noted.append(await service.stop())

    stack.push_async_callback(stop)
    return noted


async def _watch(console: Console, address: str, random: Random) -> list[Outcome]:
    """Asks one problem after another for each tenant, and shows everything."""
    outcomes = []
    for tenant, description in TENANTS.items():
        console.print(Rule(f"[bold]{tenant}[/] {description}", align="left"))
        async with AsyncClient(address, key=f"demo-{tenant}") as client:
            for count in WATCHED_COUNTS:
                problem = draw(random, count)
                console.print(f"\n[bold]{problem.question}[/]")
                outcome = await _ask(client, tenant, problem, console)
                outcomes.append(outcome)
                mark = "[green]right[/]" if outcome.right else f"[red]wrong[/], it is {problem.answer}"
                console.print(f"  {mark}")
        console.print()
    return outcomes


async def _crowd(console: Console, address: str, random: Random) -> list[Outcome]:
    """Asks problems for all tenants at once, a few in flight for each."""
    outcomes: list[Outcome] = []
    silent = Console(quiet=True)

    async def one(tenant: str, problems: Sequence[Problem]) -> None:
        async with AsyncClient(address, key=f"demo-{tenant}") as client:
            for problem in problems:
                outcomes.append(await _ask(client, tenant, problem, silent))
                progress.advance(task)

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("all three tenants at once", total=CROWD * len(TENANTS))
        async with asyncio.TaskGroup() as group:
            for tenant in TENANTS:
                problems = [draw(random) for _ in range(CROWD)]
                group.create_task(one(tenant, problems[::2]))
                group.create_task(one(tenant, problems[1::2]))
    return outcomes


async def _ask(client: AsyncClient, tenant: str, problem: Problem, console: Console) -> Outcome:
    async with client.generate(problem.question) as stream:
        with Lines(console) as lines:
            view = StreamView(lines)
            async for event in stream:
                view.show(event)
        reply = await stream.reply()
    return Outcome(tenant, reply, is_right(problem, reply.answer))


if __name__ == "__main__":
    main()
