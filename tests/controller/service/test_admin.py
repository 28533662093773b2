"""The door for operators."""

import grpc
import pytest

from controller import wire
from controller.planning.calibration import Calibration
from curfew.v1 import admin_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, controller

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
