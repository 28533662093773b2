"""A second policy decides beside the first, and nothing that it does reaches a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controller.policy import Policy, PolicyError, load_policy, parse_policy
from curfew.rpc.durations import duration, seconds
from curfew.v1 import admin_pb2, generation_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, Door, ask, controller

BAD = "apiVersion: curfew/v1\ntenants:\n  - name: Analyst\n"


def reading(text: str) -> Callable[[], Policy]:
    return lambda: parse_policy(text, "shadow.yaml", None)


async def shadow_of(door: Door, tenant: str) -> admin_pb2.ShadowDifferences:
    response = await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())
    return next(s.shadow for s in response.standings if s.tenant == tenant)


async def status(door: Door) -> admin_pb2.ShadowStatus:
    return (await door.admin.GetStatus(admin_pb2.GetStatusRequest())).shadow


async def test_the_same_policy_would_do_nothing_otherwise() -> None:
    async with (
        FakeWorker(Script(reasoning=10)) as worker,
        controller([worker.address], shadow=reading(POLICY)) as door,
    ):
        for tenant in ("analyst", "impossible", "late"):
            for _ in range(3):
                await door.generate(tenant)
            seen = await shadow_of(door, tenant)
            assert seen == admin_pb2.ShadowDifferences(compared=3, mean_predicted_delta=duration(0.0))


async def test_differences_are_those_between_the_two_plans() -> None:
    other = POLICY.replace("deadline: 10s", "deadline: 9s").replace("{max: 200,", "{max: 50,")
    async with (
        FakeWorker(Script(reasoning=10)) as worker,
        controller([worker.address], shadow=reading(other)) as door,
        controller([worker.address], other) as second,
    ):
        real, shadow = await door.generate("analyst"), await second.generate("analyst")
        seen = await shadow_of(door, "analyst")
        assert (await status(door)).policy_version == parse_policy(other, "", None).version
    assert (seen.compared, seen.admission, seen.mode, seen.budget) == (1, 0, 0, 1)
    delta = shadow.plan.budget.reasoning_tokens - real.plan.budget.reasoning_tokens
    assert seen.mean_budget_delta_tokens == delta < 0
    assert seconds(seen.mean_predicted_delta) < 0


async def test_requests_that_only_one_of_them_would_refuse_are_told_apart() -> None:
    impossible = "name: impossible\n    objectives: "
    kinder = POLICY.replace(impossible + "{deadline: 2ms}", impossible + "{deadline: 8s}")
    kinder = kinder.replace("objectives: {deadline: 600ms}", "objectives: {deadline: 2ms}")
    async with FakeWorker() as worker, controller([worker.address], shadow=reading(kinder)) as door:
        refused, served = await door.generate("impossible"), await door.generate("support")
        assert refused.error is not None
        assert served.error is None
        seen = [await shadow_of(door, name) for name in ("impossible", "support")]
    assert [(s.compared, s.admission, s.served_by_shadow_only) for s in seen] == [(1, 1, 1), (1, 1, 0)]


async def test_another_mode_and_rules_count_by_the_requests_labels() -> None:
    rules = "    rules:\n      - match: {task: triage}\n        mode: no_think\n"
    other = POLICY.replace("    key: {env: ANALYST}\n", f"    key: {{env: ANALYST}}\n{rules}")
    async with FakeWorker() as worker, controller([worker.address], shadow=reading(other)) as door:
        await door.generate("analyst")
        answer = await door.generate("analyst", ask(labels={"task": "triage"}))
        seen = await shadow_of(door, "analyst")
    assert answer.plan.mode == generation_pb2.MODE_THINK
    assert (seen.compared, seen.mode, seen.budget) == (2, 1, 1)


async def test_a_tenant_that_the_shadow_does_not_know_would_not_be_served() -> None:
    stranger = "apiVersion: curfew/v1\ntenants:\n  - name: stranger\n"
    async with FakeWorker() as worker, controller([worker.address], shadow=reading(stranger)) as door:
        await door.generate("analyst")
        seen = await shadow_of(door, "analyst")
    assert (seen.compared, seen.admission, seen.served_by_shadow_only) == (1, 1, 0)


async def test_without_a_shadow_nothing_is_told_of_one() -> None:
    async with FakeWorker() as worker, controller([worker.address]) as door:
        await door.generate("analyst")
        response = await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())
        general = await door.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert not any(standing.HasField("shadow") for standing in response.standings)
    assert not general.HasField("shadow")


async def test_a_bad_shadow_hurts_nobody_and_a_good_one_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "shadow.yaml"
    file.write_text(BAD)
    async with (
        FakeWorker() as worker,
        controller([worker.address], shadow=lambda: load_policy(file, None)) as door,
    ):
        live = door.shadow
        assert live is not None
        assert (await door.generate("analyst")).error is None
        told = await status(door)
        assert told.policy_version == ""
        assert told.rejected.startswith(f"{file}:3:11: tenants[0].name: 'Analyst' is not a name")
        assert (await shadow_of(door, "analyst")).compared == 0
        file.write_text(POLICY)
        assert await live.reload() is True
        assert (await door.generate("analyst")).error is None
        assert (await shadow_of(door, "analyst")).compared == 1
        file.write_text(BAD)
        with pytest.raises(PolicyError):
            await live.reload()
        assert (await door.generate("analyst")).error is None
        told = await status(door)
        assert told.policy_version == parse_policy(POLICY, "", None).version
        assert told.rejected != ""
        assert (await shadow_of(door, "analyst")).compared == 2
        file.write_text(POLICY + "# another\n")
        assert await live.reload() is True
        assert (await status(door)).rejected == ""
        assert (await shadow_of(door, "analyst")).compared == 0


async def test_a_shadow_that_fails_is_counted_and_the_request_is_served(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("controller.desk.desk.Desk.look_instead", broken)
    async with FakeWorker() as worker, controller([worker.address], shadow=reading(POLICY)) as door:
        answers = [await door.generate("analyst") for _ in range(3)]
        told = await status(door)
    assert [answer.error for answer in answers] == [None] * 3
    assert told.faults == 3
    assert [r.message for r in caplog.records if "shadow" in r.message] == [
        "the shadow policy cannot decide; further faults are only counted"
    ]
