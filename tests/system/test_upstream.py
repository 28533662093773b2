"""A worker in front of a real server without budgets: `transformers serve` with the demo model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from curfew.conformance import CHECKS, HttpTarget, Suite, Verdict, WorkerTarget
from curfew.dialects import DIALECTS
from curfew.processes import Service, start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.openai_server import Script, serving
from tests.system.conftest import (
    LONG_SUM,
    LOOPBACK,
    MODEL,
    Answered,
    Caller,
    System,
    describe,
    greedy,
    start_controller,
    write_policy,
)
from tests.system.transformers_server import transformers_serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

REASONING, ANSWER = pb.PHASE_REASONING, pb.PHASE_ANSWER


@dataclass(frozen=True, slots=True)
class Fronted:
    """The server, the worker before it, and a controller before that."""

    url: str
    model: str
    worker: str
    controller: str


async def start_upstream_worker(url: str, model: str) -> Service:
    """A worker in front of a server; it runs one request at a time, as `transformers serve` does."""
    return await start_service(
        "worker",
        [
            *("--upstream", url, "--upstream-model", model, "--tokenizer", str(MODEL)),
            *("--listen", LOOPBACK, "--slots", "1", "--max-sequence-tokens", "2048"),
        ],
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fronted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fronted]:
    directory = tmp_path_factory.mktemp("upstream")
    async with transformers_serving(directory) as (url, model):
        worker = await start_upstream_worker(url, model)
        try:
            address = worker.addresses["listen"]
            step = (await describe(address)).speed.decode[0].step
            policy = write_policy(directory / "policy.yaml", step.seconds + step.nanos / 1e9)
            controller = await start_controller(policy, address)
            try:
                yield Fronted(url, model, address, controller.addresses["listen"])
            finally:
                await controller.stop()
        finally:
            assert await worker.stop() == 0


def question(budget: int, grace: int = 0, text: str = LONG_SUM) -> worker_pb2.WorkerServiceGenerateRequest:
    return worker_pb2.WorkerServiceGenerateRequest(
        request_id=f"{budget} {grace}",
        messages=[pb.Message(role=pb.ROLE_USER, content=text)],
        mode=pb.MODE_THINK if budget else pb.MODE_NO_THINK,
        budget=pb.Budget(reasoning_tokens=budget, grace_tokens=grace, answer_tokens=12),
        sampling=pb.SamplingParams(temperature=0),
    )


async def ask(
    address: str, request: worker_pb2.WorkerServiceGenerateRequest
) -> tuple[dict[int, str], worker_pb2.WorkerCompletion]:
    """Text by phase, and the completion."""
    texts: dict[int, str] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        call = WorkerServiceStub(channel).Generate(request)
        async for response in call:
            if response.HasField("delta"):
                phase = response.delta.phase
                texts[phase] = texts.get(phase, "") + response.delta.text
            elif response.HasField("completion"):
                return texts, response.completion
    raise AssertionError("no completion")


async def test_it_says_honestly_what_it_can_do(fronted: Fronted) -> None:
    described = await describe(fronted.worker)
    can = described.capabilities
    assert can.budget_exactness == worker_pb2.BUDGET_EXACTNESS_CONTINUATION
    assert can.budget_overshoot_tokens == 0
    assert can.adjust
    assert not any([can.resume, can.token_ids, can.tools, can.answer_format, can.probe])
    assert described.limits.slots == 1
    assert described.speed.prefill_tokens_per_s > 0
    assert 0.5 < described.bytes_per_token < 2


@pytest.mark.parametrize(("budget", "grace"), [(0, 0), (1, 0), (17, 0), (20, 12), (200, 0)])
async def test_it_gives_what_the_engine_gives(
    fronted: Fronted, engine_worker: str, budget: int, grace: int
) -> None:
    request = question(budget, grace)
    texts, completion = await ask(fronted.worker, request)
    expected_texts, expected = await ask(engine_worker, request)
    assert texts == expected_texts
    assert completion.usage == expected.usage
    assert completion.reasoning_end == expected.reasoning_end
    assert completion.finish_reason == expected.finish_reason


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine_worker() -> AsyncIterator[str]:
    """Curfew's own engine, with the same model."""
    worker = await start_service("worker", ["--model", str(MODEL), "--listen", LOOPBACK])
    try:
        yield worker.addresses["listen"]
    finally:
        await worker.stop()


async def test_callers_are_served_through_a_controller(fronted: Fronted) -> None:
    # No deadline, no price: on a busy machine that server may take a tenth of a second for a token.
    async with Caller(fronted.controller, "key-maker") as caller:
        answered = Answered([event async for event in caller.generate(greedy("What is 12 + 37 + 45?"))])
    assert answered.plan.mode == pb.MODE_THINK
    assert answered.text(ANSWER) == "94"
    assert answered.text(REASONING).startswith("12 + 37 = 49")
    usage = answered.completion.usage
    counted = {
        phase: sum(event.delta.token_count for event in answered.events if event.delta.phase == phase)
        for phase in (REASONING, ANSWER)
    }
    assert counted == {REASONING: usage.reasoning_tokens, ANSWER: usage.answer_tokens}


async def test_what_stands_before_a_server_without_budgets_keeps_them(fronted: Fronted) -> None:
    async with WorkerTarget(fronted.worker) as target:
        results = await Suite(target, "What is 12 + 37 + 45?", 3).run(CHECKS, lambda _: None)
    verdicts = {result.name: result.verdict for result in results}
    assert Verdict.FAIL not in verdicts.values(), results
    assert verdicts["exact cap"] is verdicts["never empty"] is verdicts["counts"] is Verdict.PASS


async def test_the_server_alone_does_not(fronted: Fronted) -> None:
    async with HttpTarget(fronted.url, DIALECTS["plain"], model=fronted.model, key=None) as target:
        results = await Suite(target, "What is 12 + 37?", 1).run(CHECKS, lambda _: None)
    verdicts = {result.name: result.verdict for result in results}
    assert verdicts["exact cap"] is Verdict.NOT_APPLICABLE
    assert verdicts["no tags"] is Verdict.FAIL


async def test_a_worker_is_as_healthy_as_the_server_behind_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with serving(Script()) as server:
        worker = await start_service("worker", ["--upstream", server.url, "--listen", LOOPBACK])
        try:
            described = await describe(worker.addresses["listen"])
            assert described.model == "scripted"
            assert described.capabilities.budget_exactness == worker_pb2.BUDGET_EXACTNESS_NATIVE
            assert described.limits.max_sequence_tokens == 4096
            assert described.speed.decode[-1].batch_size == 8
            async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
                watch = channel.unary_stream(
                    "/grpc.health.v1.Health/Watch",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                )(health_pb2.HealthCheckRequest())
                states = aiter(watch)
                async with asyncio.timeout(20):
                    assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING
                    server.healthy = False
                    assert (await anext(states)).status == health_pb2.HealthCheckResponse.NOT_SERVING
                    server.healthy = True
                    assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING
                watch.cancel()
        finally:
            assert await worker.stop() == 0


async def test_a_worker_before_another_curfew_keeps_the_budget(system: System, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy.yaml", step_s=0.001)
    key = tmp_path / "key"
    key.write_text("key-patient\n")
    controller = await start_controller(policy, system.worker, "--http", LOOPBACK)
    try:
        url = f"http://{controller.addresses['http']}/v1"
        options = ["--upstream", url, "--upstream-key-file", str(key), "--slots", "2"]
        worker = await start_service("worker", [*options, "--listen", LOOPBACK])
        try:
            described = await describe(worker.addresses["listen"])
            assert described.device == "upstream:curfew"
            for budget in (0, 8, 40, 200):
                texts, completion = await ask(worker.addresses["listen"], question(budget, grace=14))
                assert completion.usage.reasoning_tokens <= budget + 14 * (budget > 0)
                assert texts[ANSWER].isdecimal()
                assert bool(texts.get(REASONING)) is (budget > 0)
        finally:
            assert await worker.stop() == 0
    finally:
        await controller.stop()
