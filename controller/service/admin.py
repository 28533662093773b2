"""AdminService: the door for operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controller.desk import Desk
from controller.fleet import Fleet, Roster, Source, Worker
from controller.planning.decision import RefusedFor
from controller.policy import Brownout, LivePolicy, Policy, PolicyError
from controller.service.journal import Journal
from controller.service.shadow import Differences
from controller.state.shared import SharedState
from curfew.rpc.calls import Context
from curfew.rpc.durations import duration
from curfew.rpc.errors import invalid
from curfew.v1 import admin_pb2, admin_pb2_grpc

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows the policy, reloads it, and shows how tenants and the pool stand."""

    def __init__(
        self,
        policy: LivePolicy,
        desk: Desk,
        roster: Roster,
        fleet: Fleet,
        journal: Journal,
        shared: SharedState,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._desk = desk
        self._roster = roster
        self._fleet = fleet
        self._journal = journal
        self._shared = shared
        self._clock = clock
        self._began_s = clock()

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
            rejected=_told(rejected),
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

    async def GetStatus(
        self,
        request: admin_pb2.GetStatusRequest,
        context: Context[admin_pb2.GetStatusRequest, admin_pb2.GetStatusResponse],
    ) -> admin_pb2.GetStatusResponse:
        """How the pool stands now."""
        now_s = self._clock()
        capacity = self._roster.capacity
        response = admin_pb2.GetStatusResponse(
            uptime=duration(now_s - self._began_s),
            policy_version=self._policy.current.version,
            rejected=_told(self._policy.rejected),
            workers=[_worker(worker, now_s) for worker in self._fleet.workers],
            price=self._desk.market.pool_price(capacity, now_s),
            waiting=self._desk.waiting,
        )
        if capacity > 0:
            response.load = self._desk.market.load(capacity, now_s)
        response.state.controllers = self._shared.controllers
        outage = self._shared.outage
        if outage is not None:
            response.state.outage.CopyFrom(duration(now_s - outage.since_s))
            response.state.why = outage.why
        shadow, recorder = self._journal.shadow, self._journal.recorder
        if shadow is not None:
            response.shadow.policy_version = "" if shadow.current is None else shadow.current.version
            response.shadow.rejected = _told(shadow.rejected)
            response.shadow.faults = shadow.faults
        if recorder is not None:
            state = recorder.state
            response.recording.file = "" if state.file is None else str(state.file)
            response.recording.written = state.written
            response.recording.lost = state.lost
            response.recording.failure = state.failure
        return response

    def _standings(self, policy: Policy, names: Iterable[str]) -> Iterable[admin_pb2.TenantStanding]:
        now_s = self._clock()
        for name in names:
            tenant = self._desk.tenants[name]
            activity = self._journal.activities[name]
            standing, share = tenant.standing, policy.tenants[name].objectives.share
            message = admin_pb2.TenantStanding(
                tenant=name,
                requests=standing.requests,
                answered=standing.answered,
                kept=standing.kept,
                failed=standing.failed,
                target_share=share,
                mean_promised_probability=standing.mean_promised,
                output_tokens=standing.output_tokens,
                reasoning_tokens=standing.reasoning_tokens,
                probe_tokens=standing.probe_tokens,
                median_latency=duration(standing.median_latency_s),
                predictions_held=standing.held,
                planning_level=tenant.calibration.level(share).at,
                in_flight=activity.in_flight,
                rate_per_s=activity.rate_per_s(now_s),
                think_share=activity.think_share,
                mean_budget_tokens=activity.mean_budget_tokens,
                brownout=_BROWNOUT[activity.brownout],
                price=self._desk.price(name, now_s),
                refused_for_promise=standing.refused[RefusedFor.PROMISE],
                refused_for_price=standing.refused[RefusedFor.PRICE],
                refused_for_crowd=standing.refused[RefusedFor.CROWD],
            )
            if self._journal.shadow is not None:
                message.shadow.CopyFrom(_differences(self._journal.shadow.differences(name)))
            yield message


_BROWNOUT = {
    None: admin_pb2.BROWNOUT_UNSPECIFIED,
    Brownout.NONE: admin_pb2.BROWNOUT_NONE,
    Brownout.LESS: admin_pb2.BROWNOUT_LESS,
    Brownout.NO_THINK: admin_pb2.BROWNOUT_NO_THINK,
    Brownout.QUEUE: admin_pb2.BROWNOUT_QUEUE,
    Brownout.REJECT: admin_pb2.BROWNOUT_REJECT,
}

_SOURCE = {
    Source.STATIC: admin_pb2.WORKER_SOURCE_STATIC,
    Source.ANNOUNCED: admin_pb2.WORKER_SOURCE_ANNOUNCED,
    Source.DNS: admin_pb2.WORKER_SOURCE_DNS,
}


def _told(rejected: PolicyError | None) -> str:
    return "" if rejected is None else str(rejected)


def _worker(worker: Worker, now_s: float) -> admin_pb2.WorkerStatus:
    message = admin_pb2.WorkerStatus(address=worker.address, available=worker.available, load=worker.reported)
    if worker.member is not None:
        message.sources.extend(sorted(_SOURCE[source] for source in worker.member.sources))
        message.draining = worker.member.draining
    if worker.ejected_until_s is not None:
        message.ejected.CopyFrom(duration(max(0.0, worker.ejected_until_s - now_s)))
    if worker.described:
        message.model = worker.limits.model
        message.licence = worker.licence
        message.slots = worker.limits.slots
        message.silent.CopyFrom(duration(now_s - worker.heard_s))
        message.slow_start = worker.trust
    return message


def _differences(seen: Differences) -> admin_pb2.ShadowDifferences:
    both = max(1, seen.both_served)
    return admin_pb2.ShadowDifferences(
        compared=seen.compared,
        admission=seen.admission,
        mode=seen.mode,
        budget=seen.budget,
        served_by_shadow_only=seen.served_by_shadow_only,
        mean_budget_delta_tokens=seen.budget_delta_tokens / both,
        mean_promised_delta=seen.promised_delta / both,
        mean_predicted_delta=duration(seen.predicted_delta_s / both),
    )
