"""A worker is killed in mid-stream; the caller does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from curfew.processes import start_service
from curfew.v1 import generation_pb2 as pb
from tests.system.conftest import (
    LONG_SUM,
    LOOPBACK,
    Answered,
    Caller,
    greedy,
    start_worker,
    write_policy,
)

KILL_AFTER = 12
"""Deltas that the caller has read by then."""
STEP_MS = 10
"""Least time of a worker's step: a whole answer takes a second, so that the kill finds its stream unended."""


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_a_stream_whose_worker_is_killed_is_the_undisturbed_one(
    tmp_path: Path, temperature: float
) -> None:
    request = greedy(LONG_SUM)
    request.sampling.temperature = temperature
    request.sampling.seed = 7
    paced = ("--least-step-ms", str(STEP_MS))
    workers = {(each := await start_worker(LOOPBACK, *paced)).addresses["listen"]: each for _ in range(2)}
    policy = write_policy(tmp_path / "policy.yaml", step_s=STEP_MS / 1000)
    arguments = ["--policy", str(policy), "--listen", LOOPBACK, "--admin", LOOPBACK]
    controller = await start_service(
        "controller", [*arguments, *(part for address in workers for part in ("--worker", address))]
    )
    try:
        async with Caller(controller.addresses["listen"], "key-patient") as caller:
            whole = Answered([event async for event in caller.generate(request)])
            events = []
            async for event in caller.generate(request):
                events.append(event)
                if len(events) == KILL_AFTER:
                    workers[events[0].plan.worker].process.kill()
            resumed = Answered(events)
    finally:
        for service in (controller, *workers.values()):
            await service.stop()
    assert len(resumed.completion.attempts) == 2
    for phase in (pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER):
        assert resumed.tokens(phase) == whole.tokens(phase)
        assert resumed.text(phase) == whole.text(phase)
    assert resumed.completion.usage.output_tokens == whole.completion.usage.output_tokens
    budget = resumed.plan.budget
    assert resumed.completion.usage.reasoning_tokens <= budget.reasoning_tokens + budget.grace_tokens
