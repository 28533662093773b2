"""What a worker tells of its load."""

from __future__ import annotations

from curfew.v1 import worker_pb2
from tests.worker.service.serving import Steps, ask, serving


async def test_an_idle_worker_is_idle_also_after_a_request() -> None:
    async with serving() as worker:
        before = await worker.load()
        assert (before.running, before.waiting, before.free_slots) == (0, 0, 8)
        assert not before.HasField("step")
        await worker.ask(ask())
        after = await worker.load()
        assert (after.running, after.waiting, after.prefill_backlog_tokens) == (0, 0, 0)
        assert (after.free_slots, after.free_pages) == (before.free_slots, before.free_pages)
        assert after.HasField("step")


async def test_what_runs_waits_and_is_still_to_prefill_is_told() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, slots=2) as worker:
        calls = [worker.stub.Generate(ask(reasoning=900)) for _ in range(5)]
        load = await worker.between_steps(worker.until(lambda load: (load.running, load.waiting) == (2, 3)))
        assert load.free_slots == 0
        prompt_tokens = 39
        assert load.prefill_backlog_tokens >= 3 * prompt_tokens
        for call in calls:
            call.cancel()
        await worker.between_steps(worker.until(lambda load: load.running + load.waiting == 0))


async def test_tokens_per_second_fall_back_to_nothing_when_nothing_runs() -> None:
    now_s = [100.0]
    async with serving(clock=lambda: now_s[0]) as worker:
        await worker.ask(ask())
        assert (await worker.load()).tokens_per_s > 0
        now_s[0] += 2.0
        assert (await worker.load()).tokens_per_s == 0


async def test_the_description_holds_what_it_was_given() -> None:
    async with serving() as worker:
        described = await worker.stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())
        assert described.model == "small"
        assert described.HasField("load")
