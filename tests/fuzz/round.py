"""Everything hostile at once, and what must be true afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from random import Random

import grpc

from tests.fuzz import messages, wire
from tests.fuzz.frames import Door
from tests.fuzz.victim import Victim, Vitals

AT_ONCE = 12
"""Attacks under way together: enough to get in one another's way, few enough that good callers get a CPU."""


async def attack_wire(victim: Victim, seed: int, only: Container[str] | None = None) -> None:
    """Every attack, or those named, at every door. The same seed sends the same bytes, though not in the same
    order.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, attack: wire.Attack, door: Door) -> None:
        if only is None or name in only:
            async with room:
                await wire.run(attack, door, Random(f"{seed} {name} {door.method}"))

    pairs = [(wire.ATTACKS, door) for door in victim.doors()]
    pairs += [(wire.HTTP_ATTACKS, door) for door in victim.http_doors()]
    await asyncio.gather(*(one(*attack, door) for attacks, door in pairs for attack in attacks.items()))


async def attack_size(victim: Victim) -> None:
    """A message of 100 MB to each door that streams; refused before it is read."""
    unlimited = [("grpc.max_send_message_length", -1)]
    for method in victim.methods():
        if method.streams:
            with grpc.insecure_channel(method.door.address, options=unlimited) as channel:
                code, _ = await asyncio.to_thread(
                    messages.send, channel, method, bytes(100 << 20), timeout_s=20
                )
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, code


async def attack_methods(victim: Victim, seed: int | None, examples: int) -> None:
    """Hostile messages to every method. seed: None for the same ones every time."""
    for method in victim.methods():
        await asyncio.to_thread(messages.attack, method, examples=examples, randomness=seed)


async def check_unharmed(victim: Victim, before: dict[str, Vitals], *, growth_mib: float) -> None:
    """Raises AssertionError unless the services run, serve, hold no more than before and complained of
    nothing.
    """
    assert all(service.process.returncode is None for service in victim.services), "a service has ended"
    assert await victim.healthy(), "a server is not SERVING"
    assert await victim.at_rest(within_s=10), "a request is still there"
    complaints = victim.complaints()
    assert not complaints, "\n".join(complaints)
    for service in victim.services:
        then, now = before[service.name], Vitals.of(service)
        assert now.resident_mib <= then.resident_mib + growth_mib, (service.name, then, now)
        # A few connections of the good caller and of the check itself may be open.
        assert now.descriptors <= then.descriptors + 8, (service.name, then, now)
        assert now.threads <= then.threads + 16, (service.name, then, now)
