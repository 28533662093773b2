"""The door for operators."""

import asyncio

import grpc
import pytest

from controller import wire
from controller.planning.calibration import Calibration
from controller.policy import LivePolicy, PolicyError, parse_policy
from curfew.rpc.durations import seconds
from curfew.v1 import admin_pb2, worker_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import KEYS, POLICY, Door, controller

TENANTS = ["analyst", "impossible", "late", "support"]


async def test_the_policy_in_force_is_shown() -> None:
    async with controller([], ready=False) as door:
        response = await door.admin.GetPolicy(admin_pb2.GetPolicyRequest())
    assert response.yaml == POLICY
    assert response.rejected == ""
    assert len(response.policy_version) == 12


async def test_a_tenants_standing_counts_its_requests() -> None:
    async with FakeWorker(Script(reasoning=10)) as worker, controller([worker.address]) as door:
        answers = [await door.generate("analyst") for _ in range(3)]
        response = await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())
    assert [standing.tenant for standing in response.standings] == TENANTS
    analyst = response.standings[0]
    assert (analyst.requests, analyst.answered, analyst.kept, analyst.failed) == (3, 3, 3, 0)
    assert (analyst.output_tokens, analyst.reasoning_tokens) == (39, 30)
    assert analyst.target_share == 0.9
    promised = [answer.plan.promised_probability for answer in answers]
    assert analyst.mean_promised_probability == pytest.approx(sum(promised) / 3)
    assert analyst.predictions_held == sum(
        wire.seconds(answer.completion.latency) <= wire.seconds(answer.plan.predicted_latency)
        for answer in answers
    )
    assert analyst.planning_level != Calibration().level(0.9).at
    assert 0 < wire.seconds(analyst.median_latency) < 10
    support = response.standings[3]
    assert support == admin_pb2.TenantStanding(
        tenant="support",
        target_share=0.95,
        median_latency=wire.duration(0),
        planning_level=Calibration().level(0.95).at,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1000])
async def test_pages_hold_every_tenant_once(size: int) -> None:
    seen: list[str] = []
    async with controller([], ready=False) as door:
        request = admin_pb2.ListTenantStandingsRequest(page_size=size)
        while True:
            response = await door.admin.ListTenantStandings(request)
            assert 1 <= len(response.standings) <= size
            seen.extend(standing.tenant for standing in response.standings)
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
    assert seen == TENANTS


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_size_out_of_range_is_refused(size: int) -> None:
    async with controller([], ready=False) as door:
        call = door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest(page_size=size))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == f"page_size: {size} is out of range; allowed is 0 to 1000"


async def standing_of(door: Door, tenant: str) -> admin_pb2.TenantStanding:
    response = await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())
    return next(standing for standing in response.standings if standing.tenant == tenant)


async def status(door: Door) -> admin_pb2.GetStatusResponse:
    return await door.admin.GetStatus(admin_pb2.GetStatusRequest())


async def test_a_tenants_present_is_what_its_last_plans_were() -> None:
    async with FakeWorker(Script(pause_after=5)) as worker, controller([worker.address]) as door:
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        running = await standing_of(door, "analyst")
        worker.go_on.set()
        plan = (await request).plan
        await door.generate("impossible")
        after, refused = await standing_of(door, "analyst"), await standing_of(door, "impossible")
    assert (running.in_flight, running.requests, after.in_flight, after.requests) == (1, 0, 0, 1)
    assert running.rate_per_s > 0
    assert (after.think_share, after.mean_budget_tokens) == (1.0, plan.budget.reasoning_tokens)
    assert (after.brownout, after.price) == (admin_pb2.BROWNOUT_NONE, 0.0)
    assert (refused.failed, refused.refused_for_promise, refused.in_flight) == (1, 1, 0)


async def test_a_crowded_pool_shows_in_price_load_and_squeeze() -> None:
    """One slot, whose requests take some 50 ms, and sixty that come at once."""
    policy = POLICY.replace("{deadline: 600ms}", "{deadline: 3s}")
    async with (
        FakeWorker(Script(reasoning=30, step_s=0.001), slots=1) as worker,
        controller([worker.address], policy) as door,
    ):
        requests = asyncio.gather(*(door.generate("support") for _ in range(60)))
        seen, crowded = admin_pb2.GetStatusResponse(), admin_pb2.TenantStanding()
        while not requests.done() and not (seen.waiting and seen.price and crowded.price):
            seen, crowded = await status(door), await standing_of(door, "support")
        await requests
        after = await standing_of(door, "support")
    assert seen.waiting > 0
    assert seen.load > 0.5
    assert seen.price > 0
    assert crowded.price > 0
    assert after.brownout not in (admin_pb2.BROWNOUT_UNSPECIFIED, admin_pb2.BROWNOUT_NONE)


async def test_workers_are_shown_as_they_last_said() -> None:
    gone = "127.0.0.1:1"
    async with FakeWorker(Script(pause_after=5)) as worker, controller([worker.address, gone]) as door:
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        while not (seen := {w.address: w for w in (await status(door)).workers})[worker.address].load.running:
            pass
        worker.go_on.set()
        await request
    there, lost = seen[worker.address], seen[gone]
    assert (there.available, there.model, there.licence, there.slots) == (True, "fake", "Apache-2.0", 4)
    assert (there.load.running, there.load.waiting, there.load.free_pages) == (1, 0, 1000)
    assert 0 <= seconds(there.silent) < 10
    assert lost == admin_pb2.WorkerStatus(
        address=gone, load=worker_pb2.WorkerLoad(), sources=[admin_pb2.WORKER_SOURCE_STATIC]
    )


async def test_without_a_worker_there_is_no_load() -> None:
    async with controller([], ready=False) as door:
        seen = await status(door)
    assert not seen.HasField("load")
    assert seconds(seen.uptime) > 0
    assert not seen.HasField("recording")


async def test_a_bad_file_shows_until_it_is_mended() -> None:
    texts = [POLICY]
    live = LivePolicy(lambda: parse_policy(texts[-1], "policy.yaml", KEYS))
    async with controller([], live, ready=False) as door:
        first = await status(door)
        texts.append("tenants: []\n")
        with pytest.raises(PolicyError):
            await live.reload()
        bad = await status(door)
        texts.append(POLICY)
        await live.reload()
        mended = await status(door)
    assert (first.rejected, mended.rejected) == ("", "")
    assert bad.rejected.splitlines()[0] == "policy.yaml:1:1: apiVersion: must be set"
    assert first.policy_version == bad.policy_version == live.current.version
