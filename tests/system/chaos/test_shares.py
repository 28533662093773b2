"""Shares of a saturated pool, through real controllers and Redis, before the simulator's engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.system import running
from benchmarks.shares import Ingress, policy, serve

SKEWED = Ingress("mostly at its own", ((22, 2), (2, 22)))
REASONING_TOKENS = 24
WORKER = ("--slots", "8", "--speed", "demo")
WARM_S, WINDOW_S = 4.0, 8.0


async def test_tenants_of_four_to_one_are_served_so_though_each_asks_at_a_controller_of_its_own(
    tmp_path: Path,
) -> None:
    """Within what a window so short can show; `benchmarks.shares` looks for longer."""
    system_of = running(
        tmp_path, policy(REASONING_TOKENS), workers=1, controllers=2, worker_arguments=WORKER, simulated=True
    )
    async with system_of as system:
        served = await serve(system, SKEWED, WINDOW_S, WARM_S)
    assert served.failed == 0
    assert served.ratio == pytest.approx(4.0, rel=0.1)
