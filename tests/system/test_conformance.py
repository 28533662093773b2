"""Curfew keeps its budgets at all of its doors."""

from __future__ import annotations

from pathlib import Path

import pytest

from curfew.conformance import CHECKS, CallerTarget, HttpTarget, Suite, Target, Verdict, WorkerTarget
from curfew.dialects import DIALECTS
from tests.system.conftest import LONG_SUM, LOOPBACK, System, start_controller, write_policy

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def check(target: Target, open_questions: set[str]) -> None:
    """open_questions: checks that cannot tell here, or have nothing to tell."""
    results = await Suite(target, LONG_SUM, 4).run(CHECKS, lambda _: None)
    unproved = {result.name for result in results if result.verdict is not Verdict.PASS}
    # A model that is this quick may be done before anyone can leave it.
    assert unproved - {"cancellation"} == open_questions, results
    assert not [result for result in results if result.verdict is Verdict.FAIL], results


async def test_the_worker(system: System) -> None:
    async with WorkerTarget(system.worker) as target:
        await check(target, {"exact cap unstreamed", "invalid budgets"})


async def test_the_controller_over_grpc_and_over_http(system: System, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy.yaml", step_s=0.001)
    controller = await start_controller(policy, system.worker, "--http", LOOPBACK)
    try:
        async with CallerTarget(controller.addresses["listen"], "key-patient") as caller:
            await check(caller, {"exact cap unstreamed", "invalid budgets"})
        url = f"http://{controller.addresses['http']}/v1"
        async with HttpTarget(url, DIALECTS["curfew"], model=None, key="key-patient") as http:
            await check(http, set())
    finally:
        await controller.stop()
