"""Workers that come, go and come back."""

import asyncio

import grpc
from google.rpc import error_details_pb2 as details

from controller import wire
from controller.fleet.outliers import FAILURES
from curfew.rpc.errors import RpcError
from curfew.v1 import reasoning_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Door, ask, controller, detail, key


def port(worker: FakeWorker) -> int:
    return int(worker.address.rpartition(":")[2])


async def know(door: Door, *workers: FakeWorker) -> None:
    """Returns once the controller uses all these workers."""
    while not all(worker.requests for worker in workers):
        await door.generate("analyst")
    for worker in workers:
        worker.requests.clear()


async def test_without_a_worker_it_is_not_serving_and_says_so_to_callers() -> None:
    async with FakeWorker() as gone:
        address = gone.address
    async with controller([address], ready=False) as door:
        await door.becomes(serving=False)
        answer = await door.generate("analyst")
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    assert detail(answer.error, details.ErrorInfo).reason == "NO_WORKER"
    assert detail(answer.error, details.RetryInfo).retry_delay.seconds == 1


async def test_a_worker_that_is_not_well_is_not_chosen() -> None:
    async with FakeWorker() as ill, FakeWorker() as well, controller([ill.address, well.address]) as door:
        await know(door, ill, well)
        await ill.set_serving(False)
        while (await door.generate("analyst")).plan.worker != well.address:
            pass  # the news is still under way
        plans = [(await door.generate("analyst")).plan for _ in range(5)]
        assert {plan.worker for plan in plans} == {well.address}
        await well.set_serving(False)
        await door.becomes(serving=False)
        await ill.set_serving(True)
        await door.becomes(serving=True)
        assert (await door.generate("analyst")).plan.worker == ill.address


async def test_a_worker_that_comes_back_is_used_again() -> None:
    async with FakeWorker() as first:
        number = port(first)
        async with controller([first.address]) as door:
            await first.stop()
            await door.becomes(serving=False)
            async with FakeWorker(port=number):
                await door.becomes(serving=True)
                assert (await door.generate("analyst")).error is None


async def test_a_worker_that_fails_requests_in_a_row_gets_no_more_for_a_while() -> None:
    failure = RpcError(grpc.StatusCode.INTERNAL, "out of memory")
    async with (
        FakeWorker(Script(refuse_with=failure)) as ill,
        FakeWorker() as well,
        controller([ill.address, well.address]) as door,
    ):
        while len(ill.requests) < FAILURES:
            await door.generate("analyst")
        plans = [(await door.generate("analyst")).plan for _ in range(5)]
    assert {plan.worker for plan in plans} == {well.address}


async def test_requests_go_where_they_start_first() -> None:
    async with (
        FakeWorker(slots=4) as one,
        FakeWorker(slots=4) as other,
        controller([one.address, other.address]) as door,
    ):
        await know(door, one, other)
        for worker in (one, other):
            worker.script.pause_after = 3
        calls = [asyncio.create_task(door.generate("analyst")) for _ in range(6)]
        await asyncio.wait_for(asyncio.gather(one.paused.wait(), other.paused.wait()), 10)
        for worker in (one, other):
            worker.go_on.set()
        answers = await asyncio.gather(*calls)
    assert all(answer.error is None for answer in answers)
    assert [len(one.requests), len(other.requests)] == [3, 3]


async def test_a_slow_worker_gets_smaller_budgets_than_a_fast_one() -> None:
    budgets = []
    for step_s in (0.002, 0.008):
        async with FakeWorker(Script(step_s=step_s)) as worker, controller([worker.address]) as door:
            budgets.append((await door.generate("support")).plan.budget)
    fast, slow = budgets
    assert fast.reasoning_tokens == 40
    assert slow.reasoning_tokens < 40


async def test_a_request_that_must_wait_for_a_slot_is_planned_with_the_wait() -> None:
    async with FakeWorker(Script(pause_after=3), slots=1) as worker, controller([worker.address]) as door:
        running = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        planned = await door.reasoning.Plan(reasoning_pb2.PlanRequest(request=ask()), metadata=key("analyst"))
        worker.go_on.set()
        first = (await running).plan
    assert wire.seconds(planned.plan.predicted_latency) > 0.1 + wire.seconds(first.predicted_latency)
