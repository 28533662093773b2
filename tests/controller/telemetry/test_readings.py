"""What a controller's metrics say, of real requests through its door."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.policy import LivePolicy, PolicyError, load_policy, parse_policy
from controller.telemetry.settings import TelemetrySettings
from curfew.telemetry import controller_metrics as metrics
from curfew.telemetry.metric import Reading
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import KEYS, POLICY, Door, controller
from tests.telemetry import value

COUNTED = TelemetrySettings(counted=True)
BAD = "apiVersion: curfew/v1\ntenants:\n  - name: Analyst\n"


async def ended(door: Door, requests: int) -> list[Reading]:
    """What is read once so many requests are over: the last word to a caller comes a moment before."""
    while True:
        readings = list(door.readings())
        if sum(r.value for r in readings if r.metric is metrics.REQUESTS) == requests:  # type: ignore[misc]
            return readings
        await asyncio.sleep(0)


async def test_an_answered_request_is_counted_with_its_times_and_its_budget() -> None:
    async with (
        FakeWorker(Script(reasoning=20, answer="it is 42")) as worker,
        controller([worker.address], telemetry=COUNTED) as door,
    ):
        answer = await door.generate("analyst")
        readings = await ended(door, 1)
        model = next(r.labels[3] for r in readings if r.metric is metrics.FIRST_TOKEN)
    usage = answer.completion.usage
    served = ("analyst", "chat", "curfew", model)
    assert value(readings, metrics.REQUESTS, "analyst", "answered") == 1
    assert value(readings, metrics.KEPT, "analyst") == 1
    assert value(readings, metrics.DURATION, *served, "") == 1
    assert value(readings, metrics.FIRST_TOKEN, *served) == 1
    assert value(readings, metrics.PER_TOKEN, *served) == 1
    assert value(readings, metrics.FIRST_ANSWER_TOKEN, "analyst") == 1
    assert value(readings, metrics.BUDGET_GRANTED, "analyst") == 1
    assert value(readings, metrics.REASONING_ENDS, "analyst", "natural") == 1
    assert value(readings, metrics.TOKENS, "analyst", "prompt") == usage.prompt_tokens
    assert value(readings, metrics.TOKENS, "analyst", "reasoning") == usage.reasoning_tokens
    assert value(readings, metrics.PROMISED, "analyst") == pytest.approx(answer.plan.promised_probability)


async def test_refusals_are_counted_by_why() -> None:
    limited = POLICY + "    limits: {rate: 1/h}\n"
    async with (
        FakeWorker(Script()) as worker,
        controller([worker.address], limited, telemetry=COUNTED) as door,
    ):
        await door.generate("impossible")
        await door.generate("late")
        await door.generate("late")
        readings = await ended(door, 3)
    assert value(readings, metrics.REQUESTS, "impossible", "refused") == 1
    assert value(readings, metrics.REFUSALS, "impossible", "promise") == 1
    assert value(readings, metrics.REFUSALS, "late", "limit") == 1
    assert value(readings, metrics.REQUESTS, "late", "answered") == 1


async def test_requests_that_the_worker_refuses_or_fails_and_those_that_are_left_are_told_apart() -> None:
    script = Script(refuse_with=RuntimeError("secret"))
    async with (
        FakeWorker(script) as worker,
        controller([worker.address], telemetry=COUNTED) as door,
    ):
        await door.generate("analyst")
        script.refuse_with, script.pause_after = None, 5
        call = door.call("analyst")
        await call.read()
        call.cancel()
        readings = await ended(door, 2)
    assert value(readings, metrics.REQUESTS, "analyst", "failed") == 1
    assert value(readings, metrics.REQUESTS, "analyst", "left") == 1


async def test_a_request_that_goes_on_elsewhere_is_a_failover() -> None:
    async with (
        FakeWorker(Script(fail_after=5)) as first,
        FakeWorker(Script(fail_after=5)) as second,
        controller([first.address, second.address], telemetry=COUNTED) as door,
    ):
        first.loses_resumed = second.loses_resumed = False
        answer = await door.generate("analyst")
        readings = await ended(door, 1)
    assert len(answer.completion.attempts) == 2
    assert value(readings, metrics.FAILOVERS, "analyst") == 1


async def test_a_hedge_is_counted_and_is_no_failover() -> None:
    policy = POLICY.replace("  - name: analyst\n", "  - name: analyst\n    hedge: 50ms\n")
    async with (
        FakeWorker(Script(pause_after=0)) as one,
        FakeWorker(Script(pause_after=0)) as two,
        controller([one.address, two.address], policy, telemetry=COUNTED) as door,
    ):
        asking = asyncio.create_task(door.generate("analyst"))
        for worker in (one, two):
            await asyncio.wait_for(worker.paused.wait(), 10)
        one.go_on.set()
        await asking
        readings = await ended(door, 1)
    assert value(readings, metrics.HEDGES, "analyst") == 1
    assert value(readings, metrics.FAILOVERS, "analyst") == 0


async def test_tenants_beyond_the_first_are_added_up_as_other() -> None:
    async with (
        FakeWorker(Script()) as worker,
        controller([worker.address], telemetry=TelemetrySettings(counted=True, most_tenants=2)) as door,
    ):
        for tenant in ("analyst", "impossible", "late"):
            await door.generate(tenant)
        readings = await ended(door, 3)
    assert value(readings, metrics.REQUESTS, "analyst", "answered") == 1
    assert value(readings, metrics.REQUESTS, "other", "answered") == 1
    assert value(readings, metrics.REQUESTS, "other", "refused") == 1
    labelled = [dict(zip(r.metric.labels, r.labels, strict=True)) for r in readings]
    assert {labels["tenant"] for labels in labelled if "tenant" in labels} == {"analyst", "support", "other"}


async def test_no_count_falls_when_a_policy_names_others_first() -> None:
    texts = [POLICY, POLICY.replace("  - name: analyst", "  - name: newcomer\n  - name: analyst")]
    live = LivePolicy(lambda: parse_policy(texts[0], "policy.yaml", KEYS))
    settings = TelemetrySettings(counted=True, most_tenants=1)
    async with FakeWorker(Script()) as worker, controller([worker.address], live, telemetry=settings) as door:
        await door.generate("analyst")
        await ended(door, 1)
        texts.pop(0)
        await live.reload()
        await door.generate("analyst")
        readings = await ended(door, 2)
    assert value(readings, metrics.REQUESTS, "analyst", "answered") == 1
    assert value(readings, metrics.REQUESTS, "other", "answered") == 1
    assert value(readings, metrics.KEPT, "newcomer") == 0


async def test_every_tenant_counts_from_0() -> None:
    async with FakeWorker(Script()) as worker, controller([worker.address], telemetry=COUNTED) as door:
        readings = list(door.readings())
    for outcome in ("answered", "refused", "failed", "left"):
        assert value(readings, metrics.REQUESTS, "support", outcome) == 0
    assert value(readings, metrics.KEPT, "support") == 0


async def test_a_policy_that_is_refused_shows_until_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    live = LivePolicy(lambda: load_policy(file, KEYS))
    async with controller([], live, ready=False, telemetry=COUNTED) as door:
        readings = list(door.readings())
        assert value(readings, metrics.POLICY_REJECTED, "active") == 0
        file.write_text(BAD)
        with pytest.raises(PolicyError):
            await live.reload()
        readings = list(door.readings())
        assert value(readings, metrics.POLICY_REJECTED, "active") == 1
        assert value(readings, metrics.POLICY_RELOADS, "active", "rejected") == 1
        file.write_text(POLICY)
        await live.reload()
        readings = list(door.readings())
    assert value(readings, metrics.POLICY_REJECTED, "active") == 0
    assert value(readings, metrics.POLICY_RELOADS, "active", "ok") == 1
    assert value(readings, metrics.WORKERS_AVAILABLE) == 0


async def test_what_a_shadow_policy_would_do_otherwise_is_counted() -> None:
    other = POLICY.replace("{max: 200,", "{max: 50,")
    async with (
        FakeWorker(Script(reasoning=10)) as worker,
        controller(
            [worker.address], shadow=lambda: parse_policy(other, "shadow.yaml", None), telemetry=COUNTED
        ) as door,
    ):
        await door.generate("analyst")
        readings = await ended(door, 1)
    assert value(readings, metrics.SHADOW_COMPARED, "analyst") == 1
    assert value(readings, metrics.SHADOW_DIFFERENCES, "analyst", "budget") == 1
    assert value(readings, metrics.SHADOW_DIFFERENCES, "analyst", "admission") == 0
    assert value(readings, metrics.POLICY_REJECTED, "shadow") == 0
