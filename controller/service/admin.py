"""AdminService: the door for operators."""

from __future__ import annotations

from collections.abc import Iterable

from controller import wire
from controller.desk.tenants import Tenants
from controller.policy import LivePolicy, Policy, PolicyError
from curfew.rpc.calls import Context
from curfew.rpc.errors import invalid
from curfew.v1 import admin_pb2, admin_pb2_grpc

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows the policy, reloads it, and shows how tenants stand."""

    def __init__(self, policy: LivePolicy, tenants: Tenants) -> None:
        self._policy = policy
        self._tenants = tenants

    async def GetPolicy(
        self,
        request: admin_pb2.GetPolicyRequest,
        context: Context[admin_pb2.GetPolicyRequest, admin_pb2.GetPolicyResponse],
    ) -> admin_pb2.GetPolicyResponse:
        """The policy in force, and why the file that was read last is not, if it is not."""
        policy, rejected = self._policy.current, self._policy.rejected
        return admin_pb2.GetPolicyResponse(
            policy_version=policy.version,
            yaml=policy.text,
            rejected="" if rejected is None else str(rejected),
        )

    async def ReloadPolicy(
        self,
        request: admin_pb2.ReloadPolicyRequest,
        context: Context[admin_pb2.ReloadPolicyRequest, admin_pb2.ReloadPolicyResponse],
    ) -> admin_pb2.ReloadPolicyResponse:
        """Reads the file now. One with errors changes nothing; each is a violation, named by its place."""
        try:
            changed = await self._policy.reload()
        except PolicyError as error:
            places = ((f"{error.file}:{p.mark.line}:{p.mark.column}", p.message) for p in error.problems)
            raise invalid(places) from None
        return admin_pb2.ReloadPolicyResponse(policy_version=self._policy.current.version, changed=changed)

    async def ListTenantStandings(
        self,
        request: admin_pb2.ListTenantStandingsRequest,
        context: Context[admin_pb2.ListTenantStandingsRequest, admin_pb2.ListTenantStandingsResponse],
    ) -> admin_pb2.ListTenantStandingsResponse:
        """A page of standings, by name; the token of the next page is the last name of this one."""
        if not 0 <= request.page_size <= LARGEST_PAGE:
            wrong = f"{request.page_size} is out of range; allowed is 0 to {LARGEST_PAGE}"
            raise invalid([("page_size", wrong)])
        policy = self._policy.current
        names = sorted(name for name in policy.tenants if name > request.page_token)
        size = request.page_size or DEFAULT_PAGE
        page = names[:size]
        return admin_pb2.ListTenantStandingsResponse(
            standings=list(self._standings(policy, page)),
            next_page_token=page[-1] if len(names) > size else "",
        )

    def _standings(self, policy: Policy, names: Iterable[str]) -> Iterable[admin_pb2.TenantStanding]:
        for name in names:
            tenant = self._tenants[name]
            standing, share = tenant.standing, policy.tenants[name].objectives.share
            yield admin_pb2.TenantStanding(
                tenant=name,
                requests=standing.requests,
                answered=standing.answered,
                kept=standing.kept,
                failed=standing.failed,
                target_share=share,
                mean_promised_probability=standing.mean_promised,
                output_tokens=standing.output_tokens,
                reasoning_tokens=standing.reasoning_tokens,
                median_latency=wire.duration(standing.median_latency_s),
                predictions_held=standing.held,
                planning_level=tenant.calibration.level(share).at,
            )
