"""Runs a way of deciding on a scenario against the real system: a controller and a worker, as processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks.goodput import systems
from benchmarks.goodput.scenario import Kind, Scenario
from benchmarks.goodput.score import Came, Score
from benchmarks.replay import Item, Reply, replay, serving

GIVE_UP_S = 60.0


def run(
    kind: Kind, scenario: Scenario, policy: str, progress: Callable[[int], None] = lambda done: None
) -> Score:
    """Runs one policy."""
    return asyncio.run(_run(kind, scenario, policy, progress))


async def _run(kind: Kind, scenario: Scenario, policy: str, progress: Callable[[int], None]) -> Score:
    items = [Item(q.request.arrival.arrival_s, q.request.tenant, q.problem) for q in scenario.questions]
    keys = {tenant: systems.key(tenant) for tenant in scenario.deadlines_s}
    least_step_ms = 1000 * kind.model.engine.least_step_s
    arguments = ["--slots", str(kind.model.slots), "--least-step-ms", str(least_step_ms)]
    with TemporaryDirectory() as directory, TemporaryFile() as log:
        file = Path(directory) / "policy.yaml"
        file.write_text(policy)
        async with serving(file, worker_arguments=arguments, log=log) as (address, _):
            replies = await replay(address, keys, items, timeout_s=GIVE_UP_S, progress=progress, report=True)
    return Score.of(_came(scenario, reply) for reply in replies[scenario.scored_from :])


def _came(scenario: Scenario, reply: Reply) -> Came:
    promised = None
    if reply.plan is not None and reply.plan.HasField("deadline"):
        promised = reply.plan.promised_probability
    return Came(
        reply.item.tenant,
        reply.completion is not None,
        reply.within(scenario.deadlines_s[reply.item.tenant]),
        float(reply.right),
        promised,
    )
