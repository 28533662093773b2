"""A quarter of a minute in which everything breaks; the callers do not lose a request, nor a token."""

from __future__ import annotations

from pathlib import Path
from random import Random

from benchmarks.chaos.callers import Ended, ask_all, asks, policy
from benchmarks.chaos.faults import Due, Fault, breaking
from benchmarks.chaos.system import running
from benchmarks.chaos.tally import cases, tally
from benchmarks.chaos.truth import Difference, truths

REQUESTS = 48
EVERY_S = 0.2
FAULTS = (
    Due(1.0, Fault.WORKER_CUT_OFF),
    Due(2.0, Fault.WORKER_KILLED),
    Due(3.5, Fault.REDIS_KILLED),
    Due(4.5, Fault.CALLERS_CUT_OFF),
    Due(5.5, Fault.WORKER_CUT_OFF),
    Due(7.0, Fault.CONTROLLER_KILLED),
    Due(8.5, Fault.WORKER_KILLED),
)


async def test_no_request_is_lost_and_no_token_is_missing_wrong_or_told_twice(tmp_path: Path) -> None:
    random, seen, happened = Random(5), list[Ended](), list[Fault]()
    arguments = ["--least-step-ms", "6"]
    async with running(tmp_path, policy(), workers=2, controllers=2, worker_arguments=arguments) as system:
        async with breaking(system, FAULTS, random, happened.append) as broken:
            ended = await ask_all(system.doors, asks(REQUESTS, random), EVERY_S, seen.append)
            await broken
        judge = system.workers[0]
        await judge.ready()
        found = tally(ended, await truths(judge.own_address, cases(ended)))
    assert len(happened) == len(FAULTS)
    assert found.lost == 0
    assert found.answered + found.failed_cleanly == len(seen) == REQUESTS
    assert found.difference == Difference()
    assert found.budget_overshoot == 0
    # Else nothing would have been tested.
    assert found.answered > REQUESTS / 2
    assert found.moved > 0
