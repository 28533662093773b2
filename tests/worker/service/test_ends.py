"""How requests end before their time: callers that leave, deadlines, failures, and the worker's own end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2

from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.worker.engine.small import (
    Clock,
    default_closing,
    make_runner,
    make_settings,
    small_model,
    small_tokenizer,
)
from tests.worker.service.serving import (
    MODEL,
    NARROW,
    Answer,
    SteppedRunner,
    Steps,
    Worker,
    ask,
    check_health,
    refusal,
    serving,
    told,
)
from worker.engine.engine import Engine
from worker.model.chat import Chat, Prompt, Turn
from worker.model.tools import Tool
from worker.service import command
from worker.service.door import SERVICE
from worker.service.requests import RequestReader
from worker.service.security import Security

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def steps_with(worker: Worker, request_id: str) -> int:
    return sum(any(name == request_id for name, _ in step) for step in worker.runner.steps)


async def test_a_caller_that_leaves_frees_its_slot_before_the_next_step() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        leaving, staying = ask("leaving", reasoning=900), ask("staying", reasoning=900)
        call, other = worker.stub.Generate(leaving), worker.stub.Generate(staying)
        for stream in (call, other):
            await worker.between_steps(stream.read())
        assert (await worker.until(lambda load: load.running == 2)).free_slots == 6
        call.cancel()
        load = await worker.between_steps(until_running(worker, 1))
        assert load.free_slots == 7
        made = steps_with(worker, "leaving")
        await worker.between_steps(other.read())
        assert steps_with(worker, "leaving") == made
        other.cancel()
        assert (await worker.between_steps(until_running(worker, 0))).free_slots == 8


async def until_running(worker: Worker, count: int) -> worker_pb2.WorkerLoad:
    return await worker.until(lambda load: load.running == count)


async def test_leaving_the_loop_of_a_stream_and_cancelling_its_call_is_leaving() -> None:
    async with serving(steps=Steps(endless=True)) as worker:
        call = worker.stub.Generate(ask(reasoning=900))
        async for response in call:
            if response.HasField("delta"):
                break
        call.cancel()
        await until_running(worker, 0)


async def test_a_caller_that_leaves_while_its_request_waits_to_be_taken_never_runs() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        running = worker.stub.Generate(ask(reasoning=900))
        await asyncio.to_thread(steps.reached.acquire)
        # The step is held, and with it what the engine is told meanwhile.
        request = worker.reader.read(ask("early"), random_seed=0, now_s=0.0)
        submitting = asyncio.create_task(worker.thread.submit(request))
        await asyncio.sleep(0)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        steps.let(5)
        await running.read()
        running.cancel()
        await worker.between_steps(until_running(worker, 0))
        assert steps_with(worker, "early") == 0
        # Nor does it keep its id.
        steps.let_go()
        await worker.ask(ask("early"))


async def test_a_queued_request_can_be_left_too() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, slots=1) as worker:
        running, queued = worker.stub.Generate(ask(reasoning=900)), worker.stub.Generate(ask("queued"))
        await worker.between_steps(worker.until(lambda load: load.waiting == 1))
        queued.cancel()
        await worker.between_steps(worker.until(lambda load: load.waiting == 0))
        running.cancel()
        await worker.between_steps(until_running(worker, 0))


async def test_a_call_whose_deadline_passes_frees_its_slot() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        call = worker.stub.Generate(ask("late", reasoning=900), timeout=0.2)
        steps.let(3)
        refused = await refusal(call)
        assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await worker.between_steps(until_running(worker, 0))


async def test_a_slow_reader_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    request = ask(reasoning=800)
    request.sampling.top_logprobs = 20  # so that the messages are large
    async with (
        serving(steps=Steps(endless=True)) as worker,
        grpc.aio.insecure_channel(worker.address, options=NARROW) as channel,
    ):
        call = WorkerServiceStub(channel).Generate(request)
        await call.read()
        await until_running(worker, 0)
        call.cancel()
        # A drain returns when the call has ended here, too.
        await worker.server.drain(3600.0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_request_that_fails_is_an_internal_error_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as worker:
        worker.steps.spoilt = "spoilt"
        sound = asyncio.create_task(worker.ask(ask(reasoning=30)))
        refused = await refusal(worker.stub.Generate(ask("spoilt")))
        assert refused.code is grpc.StatusCode.INTERNAL
        assert refused.text == "internal error"
        assert "IndexError" in caplog.text
        assert (await sound).events[-1] == "completion"
        assert (await worker.ask(ask())).events[-1] == "completion"


async def test_a_device_that_fails_ends_everything_as_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(held=True)
    async with serving(steps=steps) as worker:
        calls = [worker.stub.Generate(ask(reasoning=50)) for _ in range(3)]
        await worker.between_steps(until_running(worker, 3))
        steps.failure = RuntimeError("CUDA error: a secret")
        steps.let_go()
        for call in calls:
            refused = await refusal(call)
            assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DEVICE_FAILED")
            assert "secret" not in refused.text
        assert worker.failures == 1
        refused = await refusal(worker.stub.Generate(ask()))
        assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DEVICE_FAILED")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.stub.AdjustBudget(worker_pb2.AdjustBudgetRequest(request_id="r"))
        assert told(caught.value).code is UNAVAILABLE
        assert "a secret" in caplog.text


async def test_what_waits_for_a_device_that_fails_is_told() -> None:
    steps = Steps(held=True)
    async with serving(steps=steps) as worker:
        call = worker.stub.Generate(ask())
        await asyncio.to_thread(steps.reached.acquire)
        adjusting = worker.stub.AdjustBudget(worker_pb2.AdjustBudgetRequest(request_id="r"))
        await worker.load()
        steps.failure = RuntimeError("CUDA error")
        steps.let_go()
        assert (await refusal(call)).code is UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await adjusting
        assert caught.value.code() is UNAVAILABLE


async def test_a_step_that_does_not_come_back_is_a_device_that_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps, clock = Steps(held=True), Clock()
    async with serving(steps=steps, step_limit_s=0.08, step_clock=clock) as worker:
        call = worker.stub.Generate(ask())
        await asyncio.to_thread(steps.reached.acquire)
        adjusting = worker.stub.AdjustBudget(worker_pb2.AdjustBudgetRequest(request_id="r"))
        await worker.load()
        assert not worker.thread.failed
        clock.now_s += 0.2
        refused = await refusal(call)
        assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DEVICE_FAILED")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await adjusting
        assert caught.value.code() is UNAVAILABLE
        assert (await refusal(worker.stub.Generate(ask()))).code is UNAVAILABLE
        assert worker.failures == 1
        assert len([r for r in caplog.records if "a step has taken more than" in r.message]) == 1
        # It ends although the step is still under way.
        await worker.thread.stop()
        steps.let_go()


async def test_a_worker_whose_step_does_not_come_back_says_so_drains_and_ends_as_one_that_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Steps(held=True)
    settings = make_settings()
    runner = make_runner(MODEL, settings, SteppedRunner)
    runner.rule = steps
    engine = Engine(runner, MODEL.chat, settings, time.monotonic)
    options = command.arguments().parse_args(
        ["--model", "unused", "--listen", "127.0.0.1:0", "--step-limit-s", "1"]
    )
    reader = RequestReader(MODEL.chat, default_closing(MODEL))
    ending = asyncio.create_task(
        command._serve(
            options, engine, reader, worker_pb2.DescribeWorkerResponse(model=MODEL.name), Security()
        )
    )
    said = ""
    while "ready" not in said:
        await asyncio.sleep(0)
        said += capsys.readouterr().out
    address = said.strip().rpartition("listen=")[2]
    async with grpc.aio.insecure_channel(address) as channel:
        watching = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        watch = aiter(watching(health_pb2.HealthCheckRequest(service=SERVICE)))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        refused = await refusal(WorkerServiceStub(channel).Generate(ask()))
        assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DEVICE_FAILED")
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await ending == 1
    steps.let_go()


async def test_a_step_may_take_longer_while_a_long_prompt_waits() -> None:
    steps, clock = Steps(held=True), Clock()
    async with serving(
        small_model(pattern="M"),
        steps=steps,
        step_limit_s=0.08,
        step_clock=clock,
        pages=20_000,
        max_sequence_tokens=150_000,
    ) as worker:
        call = worker.stub.Generate(ask(text="1" * 131_072, reasoning=0, answer=1))
        await asyncio.to_thread(steps.reached.acquire)
        await worker.until(lambda load: load.running == 1 or load.waiting == 1)
        clock.now_s += 0.08 * 4
        for _ in range(100):  # as often as it takes for the watch to look
            await worker.load()
        assert not worker.thread.failed
        clock.now_s += 0.08 * 2
        assert (await refusal(call)).code is UNAVAILABLE
        steps.let_go()


async def test_a_worker_that_drains_refuses_new_requests_and_finishes_what_runs() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        assert await worker.serves()
        request = ask(reasoning=50)
        call = aiter(worker.stub.Generate(request))
        steps.let(1)
        answer = Answer([await anext(call)])
        draining = asyncio.create_task(worker.server.drain(3600.0))
        while await worker.serves():
            pass
        refused = await refusal(worker.stub.Generate(ask()))
        assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DRAINING")
        # Who steers a running request still can.
        change = worker_pb2.AdjustBudgetRequest(request_id=request.request_id, reasoning_tokens=20)
        assert (await worker.between_steps(worker.stub.AdjustBudget(change))).reasoning_tokens >= 20
        assert not draining.done()
        steps.let_go()
        async for response in call:
            answer.take(response)
        assert answer.events[-1] == "completion"
        await draining
        assert (await refusal(worker.stub.Generate(ask()))).code is UNAVAILABLE


async def test_what_runs_beyond_the_grace_is_ended() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        call = aiter(worker.stub.Generate(ask(reasoning=900)))
        steps.let(2)
        await anext(call)
        ended = asyncio.create_task(refusal(call))
        await worker.server.drain(0.05)
        refused = await ended
        assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "DRAINING")
        assert refused.retry.retry_delay.seconds == 1


async def test_who_watches_the_health_is_told_and_does_not_hold_up_a_drain() -> None:
    async with serving() as worker:
        watching = worker.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        watch = aiter(watching(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.create_task(worker.server.drain(3600.0))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await draining


class HeldChat(Chat):
    """Takes as long as a test wants to encode a prompt."""

    def __init__(self) -> None:
        super().__init__(small_tokenizer())
        self.begun, self.go_on = threading.Event(), threading.Event()

    def prompt(self, turns: Sequence[Turn], *, think: bool, tools: Sequence[Tool] = ()) -> Prompt:
        self.begun.set()
        self.go_on.wait()
        return super().prompt(turns, think=think)


async def test_a_prompt_that_takes_long_to_encode_holds_up_nobody() -> None:
    chat = HeldChat()
    async with serving(replace(MODEL, chat=chat)) as worker:
        asking = asyncio.create_task(worker.ask(ask()))
        await asyncio.to_thread(chat.begun.wait)
        assert await worker.serves()
        assert not asking.done()
        chat.go_on.set()
        assert (await asking).events[-1] == "completion"


async def test_health_is_told_while_a_prompt_of_a_hundred_thousand_tokens_is_computed() -> None:
    """At least as often as there are steps: no step, and no encoding of a prompt, holds up the event loop."""
    model = small_model(pattern="M-M")
    tokens = 100_000
    most = tokens + 100
    async with serving(model, idle_step_tokens=1024, pages=most // 8, max_sequence_tokens=most) as worker:
        request = ask(text="1+2345678 " * (tokens // 10 - 5), reasoning=0, answer=1)
        prefill = asyncio.create_task(worker.ask(request))
        checks = 0
        while not prefill.done():
            await check_health(worker.channel)
            checks += 1
        usage = (await prefill).completion.usage
        assert usage.prompt_tokens > 99_900
        assert checks > len(worker.runner.steps) > 90
