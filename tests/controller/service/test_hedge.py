"""A request that yields no token goes to a second worker too."""

from __future__ import annotations

import asyncio
from typing import Self, cast

import pytest

from controller.fleet.link import GenerateCall, Stream
from controller.service.hedge import race
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2, worker_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, controller

HEDGE = POLICY.replace("  - name: analyst\n", "  - name: analyst\n    hedge: 100ms\n")
TOKENS = 6 + 3


def silent() -> FakeWorker:
    """Yields nothing until it is told to go on."""
    return FakeWorker(Script(reasoning=6, pause_after=0))


async def first_to_pause(one: FakeWorker, two: FakeWorker) -> tuple[FakeWorker, FakeWorker]:
    """The one that has got the request, and the other."""
    waits = {asyncio.create_task(each.paused.wait()): each for each in (one, two)}
    done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in others:
        wait.cancel()
    first = waits[done.pop()]
    return first, two if first is one else one


def told(attempts: list[reasoning_pb2.Attempt]) -> list[tuple[str, int, bool]]:
    return [(attempt.worker, attempt.output_tokens, attempt.hedge) for attempt in attempts]


async def test_the_second_worker_goes_on_where_it_yields_first_and_the_first_is_cancelled() -> None:
    async with silent() as one, silent() as two, controller([one.address, two.address], HEDGE) as door:
        asking = asyncio.create_task(door.generate("analyst"))
        first, second = await first_to_pause(one, two)
        second.go_on.set()
        answer = await asking
        assert answer.error is None
        await asyncio.wait_for(first.idle.wait(), 10)
    assert first.cancelled == 1
    assert answer.text(pb.PHASE_ANSWER) == "it is 42"
    assert len(answer.token_ids(pb.PHASE_REASONING)) == 6
    assert told(list(answer.completion.attempts)) == [
        (first.address, 0, False),
        (second.address, TOKENS, True),
    ]


async def test_the_first_worker_goes_on_where_it_yields_first_and_the_second_is_cancelled() -> None:
    async with silent() as one, silent() as two, controller([one.address, two.address], HEDGE) as door:
        asking = asyncio.create_task(door.generate("analyst"))
        first, second = await first_to_pause(one, two)
        await asyncio.wait_for(second.paused.wait(), 10)
        first.go_on.set()
        answer = await asking
        await asyncio.wait_for(second.idle.wait(), 10)
    assert second.cancelled == 1
    assert told(list(answer.completion.attempts)) == [
        (first.address, TOKENS, False),
        (second.address, 0, True),
    ]


@pytest.mark.parametrize("policy", [HEDGE, POLICY])
async def test_there_is_no_second_worker_once_a_token_came_or_without_a_policy(policy: str) -> None:
    slow = Script(reasoning=6, slow_step_s=0.05)
    async with (
        FakeWorker(slow) as one,
        FakeWorker(slow) as two,
        controller([one.address, two.address], policy) as door,
    ):
        answer = await door.generate("analyst")
    assert len(answer.completion.attempts) == 1
    assert len(one.requests) + len(two.requests) == 1


async def test_a_hedge_whose_first_worker_is_lost_goes_on() -> None:
    async with silent() as one, silent() as two, controller([one.address, two.address], HEDGE) as door:
        asking = asyncio.create_task(door.generate("analyst"))
        first, second = await first_to_pause(one, two)
        await asyncio.wait_for(second.paused.wait(), 10)
        await first.stop()
        second.go_on.set()
        answer = await asking
    assert answer.error is None
    assert [attempt.worker for attempt in answer.completion.attempts] == [first.address, second.address]


async def test_a_caller_that_leaves_frees_both_workers() -> None:
    async with silent() as one, silent() as two, controller([one.address, two.address], HEDGE) as door:
        asking = asyncio.create_task(door.generate("analyst"))
        for worker in (one, two):
            await asyncio.wait_for(worker.paused.wait(), 10)
        asking.cancel()
        for worker in (one, two):
            await asyncio.wait_for(worker.idle.wait(), 10)
    assert one.cancelled == two.cancelled == 1


class SlowToLeave:
    """A call that yields once it is told to, and whose reader takes a while to let go of it."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.letting_go = asyncio.Event()
        self.closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> worker_pb2.WorkerServiceGenerateResponse:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.letting_go.set()
            await asyncio.Event().wait()
        return worker_pb2.WorkerServiceGenerateResponse(delta=pb.Delta(token_ids=[1]))

    def cancel(self) -> None:
        self.closed = True


async def test_a_caller_that_leaves_while_the_loser_is_closed_frees_the_winner_too() -> None:
    one, two = SlowToLeave(), SlowToLeave()
    first, second = (Stream(cast(GenerateCall, call), lambda _: None) for call in (one, two))
    racing = asyncio.create_task(race(first, 0.0, lambda: second))
    two.go_on.set()
    await asyncio.wait_for(one.letting_go.wait(), 10)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert one.closed
    assert two.closed
