"""AdminService: the door for operators."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from controller import wire
from controller.policy import Policy
from controller.service.tenants import Tenants
from curfew.rpc.calls import Context
from curfew.rpc.errors import RpcError, invalid
from curfew.v1 import admin_pb2, admin_pb2_grpc

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows the policy and how tenants stand."""

    def __init__(self, policy: Policy, tenants: Tenants) -> None:
        self._policy = policy
        self._tenants = tenants

    async def GetPolicy(
        self,
        request: admin_pb2.GetPolicyRequest,
        context: Context[admin_pb2.GetPolicyRequest, admin_pb2.GetPolicyResponse],
    ) -> admin_pb2.GetPolicyResponse:
        """The policy in force."""
        return admin_pb2.GetPolicyResponse(policy_version=self._policy.version, yaml=self._policy.text)

    async def ReloadPolicy(
        self,
        request: admin_pb2.ReloadPolicyRequest,
        context: Context[admin_pb2.ReloadPolicyRequest, admin_pb2.ReloadPolicyResponse],
    ) -> admin_pb2.ReloadPolicyResponse:
        """Not implemented: a controller keeps the policy that it started with."""
        raise RpcError(grpc.StatusCode.UNIMPLEMENTED, "the policy is read at start only")

    async def ListTenantStandings(
        self,
        request: admin_pb2.ListTenantStandingsRequest,
        context: Context[admin_pb2.ListTenantStandingsRequest, admin_pb2.ListTenantStandingsResponse],
    ) -> admin_pb2.ListTenantStandingsResponse:
        """A page of standings, by name; the token of the next page is the last name of this one."""
        if not 0 <= request.page_size <= LARGEST_PAGE:
            wrong = f"{request.page_size} is out of range; allowed is 0 to {LARGEST_PAGE}"
            raise invalid([("page_size", wrong)])
        names = sorted(name for name in self._policy.tenants if name > request.page_token)
        size = request.page_size or DEFAULT_PAGE
        page = names[:size]
        return admin_pb2.ListTenantStandingsResponse(
            standings=list(self._standings(page)),
            next_page_token=page[-1] if len(names) > size else "",
        )

    def _standings(self, names: Iterable[str]) -> Iterable[admin_pb2.TenantStanding]:
        for name in names:
            standing = self._tenants[name].standing
            yield admin_pb2.TenantStanding(
                tenant=name,
                requests=standing.requests,
                answered=standing.answered,
                kept=standing.kept,
                failed=standing.failed,
                target_share=self._policy.tenants[name].objectives.share,
                mean_promised_probability=standing.mean_promised,
                output_tokens=standing.output_tokens,
                reasoning_tokens=standing.reasoning_tokens,
                median_latency=wire.duration(standing.median_latency_s),
            )
