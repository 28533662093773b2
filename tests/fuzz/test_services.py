"""Whatever comes over the wire, the services go on, hold on to nothing, and good callers notice nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fuzz.round import attack_methods, attack_size, attack_wire, check_unharmed
from tests.fuzz.victim import Vitals, running_victim

GROWTH_MIB = 192
"""By how much a process may grow in a round. The worker keeps what was freed for each of its threads, and
comes to rest after some 20 rounds (`make fuzz` tells). What a round sends takes more than this.
"""


async def test_good_callers_and_services_outlive_hostile_ones(tmp_path: Path) -> None:
    async with running_victim(tmp_path) as victim:
        async with victim.good_caller() as answers:
            # What is allocated once, whoever calls, is no leak.
            await attack_wire(victim, seed=1, only=("mutated calls", "huge header", "compression bomb"))
            before = {service.name: Vitals.of(service) for service in victim.services}
            await attack_wire(victim, seed=2)
            await attack_size(victim)
            await attack_methods(victim, seed=None, examples=15)
        await check_unharmed(victim, before, growth_mib=GROWTH_MIB)
        assert answers.failures == []
        assert len(answers.latencies_s) > 10
        # No call is left for which a drain would wait its 10 s, or the worker's 30 s.
        assert await asyncio.wait_for(victim.controller.stop(), 8) == 0
        assert await asyncio.wait_for(victim.worker.stop(), 25) == 0
