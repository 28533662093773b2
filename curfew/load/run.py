"""Sends requests when they are due, and notes what came of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from curfew.client import AsyncStream, Completion, CurfewError, Delta
from curfew.load.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times in seconds, counted from the moment at which it was due: time that it waited because
    this machine was late is time that its caller waited.
    """

    tenant: str
    late_s: float
    """How long after that moment it was sent."""
    failure: str | None = None
    """None when it was answered; else the reason that the service gave, or the status code."""
    kept: bool = False
    """It was answered and every objective was kept, by the service's own count."""
    latency_s: float = 0.0
    first_token_s: float = 0.0
    output_tokens: int = 0
    reasoning_tokens: int = 0


async def run(
    arrivals: Iterable[Arrival],
    send: Callable[[Arrival], AsyncStream],
    note: Callable[[Sample], object],
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sends each arrival, in order, at its time and not before, and waits for the last. What runs does not
    hold up what is due. When this is cancelled, so is what runs.

    note: gets each request's sample when it has ended. clock: seconds from any beginning.
    """
    begun_s = clock()
    async with asyncio.TaskGroup() as requests:
        for arrival in arrivals:
            due_s = begun_s + arrival.at_s
            # Also when it is due already: the others' tasks and answers need their turn.
            await sleep(max(0.0, due_s - clock()))
            requests.create_task(_one(arrival, due_s, send, note, clock))


async def _one(
    arrival: Arrival,
    due_s: float,
    send: Callable[[Arrival], AsyncStream],
    note: Callable[[Sample], object],
    clock: Callable[[], float],
) -> None:
    late_s = clock() - due_s
    first_token_s: float | None = None
    completion: Completion | None = None
    try:
        async with send(arrival) as stream:
            async for event in stream:
                if isinstance(event, Delta) and first_token_s is None:
                    first_token_s = clock() - due_s
                elif isinstance(event, Completion):
                    completion = event
    except CurfewError as error:
        note(Sample(arrival.tenant, late_s, failure=error.reason or error.code.name))
        return
    assert completion is not None
    latency_s = clock() - due_s
    note(
        Sample(
            arrival.tenant,
            late_s,
            kept=completion.kept,
            latency_s=latency_s,
            first_token_s=latency_s if first_token_s is None else first_token_s,
            output_tokens=completion.usage.output_tokens,
            reasoning_tokens=completion.usage.reasoning_tokens,
        )
    )
