"""Whatever comes over the wire, the services go on, hold on to nothing, and good callers notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from tests.fuzz.messages import send
from tests.fuzz.round import attack_methods, attack_wire, check_unharmed
from tests.fuzz.victim import Victim, Vitals, running_victim

GROWTH_MIB = 192
"""By how much a process may grow in a round. The worker keeps what was freed for each of its threads, and
comes to rest after some 20 rounds (`make fuzz` tells). What a round sends takes more than this.
"""


@pytest_asyncio.fixture
async def victim(tmp_path: Path) -> AsyncIterator[Victim]:
    async with running_victim(tmp_path) as running:
        yield running


async def test_good_callers_and_services_outlive_hostile_ones(victim: Victim) -> None:
    async with victim.good_caller() as answers:
        # What is allocated once, whoever calls, is no leak.
        await attack_wire(victim, seed=1)
        before = {service.name: Vitals.of(service) for service in victim.services}
        await attack_wire(victim, seed=2)
        await attack_methods(victim, seed=None, examples=25)
    await check_unharmed(victim, before, growth_mib=GROWTH_MIB)
    assert answers.failures == []
    assert len(answers.latencies_s) > 10
    # No call is left that a drain would wait for.
    assert await asyncio.wait_for(victim.controller.stop(), 5) == 0
    assert await asyncio.wait_for(victim.worker.stop(), 5) == 0


async def test_a_message_of_100_mb_is_refused_before_it_is_read(victim: Victim) -> None:
    before = {service.name: Vitals.of(service) for service in victim.services}
    unlimited = [("grpc.max_send_message_length", -1)]
    for method in victim.methods():
        if method.streams:
            with grpc.insecure_channel(method.door.address, options=unlimited) as channel:
                code, _ = await asyncio.to_thread(send, channel, method, bytes(100 << 20))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await check_unharmed(victim, before, growth_mib=GROWTH_MIB)
