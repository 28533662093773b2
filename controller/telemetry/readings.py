"""Reads at each scrape what the controller knows anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

from controller.desk import Desk
from controller.fleet import Fleet, Roster
from controller.policy import Brownout, LivePolicy, PolicyError, Reloads
from controller.service.journal import Journal
from controller.state.shared import SharedState
from controller.telemetry.named import NamedTenants
from controller.telemetry.requests import RequestMetrics
from curfew.telemetry import controller_metrics as metrics
from curfew.telemetry.metric import Reading

_LEVEL = {brownout: level for level, brownout in enumerate(Brownout)}


class ControllerReadings:
    """All metrics of one controller. However many tenants there are, only those are looked at that have
    metrics of their own.
    """

    def __init__(
        self,
        policy: LivePolicy,
        desk: Desk,
        roster: Roster,
        fleet: Fleet,
        journal: Journal,
        shared: SharedState,
        tenants: NamedTenants,
        requests: RequestMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._policy, self._desk, self._roster, self._fleet = policy, desk, roster, fleet
        self._journal, self._shared, self._clock = journal, shared, clock
        self._named, self._requests = tenants, requests
        self._began_s = clock()
        self._version = version("curfew")

    def read(self) -> Iterator[Reading]:
        """How everything stands now."""
        now_s = self._clock()
        for name in self._named.all:
            self._requests.expect(name)
        yield metrics.INFO.at(1, self._version, self._policy.current.version)
        yield metrics.UPTIME.at(now_s - self._began_s)
        yield from self._requests.read()
        yield from self._tenants(now_s)
        yield from self._pool(now_s)
        yield from self._policies()
        recorder = self._journal.recorder
        if recorder is not None:
            yield metrics.RECORDED.at(recorder.state.written)
            yield metrics.RECORDING_LOST.at(recorder.state.lost)

    def _tenants(self, now_s: float) -> Iterator[Reading]:
        for name, policy in self._named.all.items():
            share = policy.objectives.share
            activity = self._journal.activities[name]
            yield metrics.TARGET_SHARE.at(share, name)
            yield metrics.PLANNING_LEVEL.at(self._desk.tenants[name].calibration.level(share).at, name)
            yield metrics.IN_FLIGHT.at(activity.in_flight, name)
            yield metrics.TENANT_PRICE.at(self._desk.price(name, now_s), name)
            if activity.brownout is not None:
                yield metrics.BROWNOUT.at(_LEVEL[activity.brownout], name)

    def _pool(self, now_s: float) -> Iterator[Reading]:
        capacity = self._roster.capacity
        yield metrics.POOL_PRICE.at(self._desk.market.pool_price(capacity, now_s))
        if capacity > 0:
            yield metrics.POOL_LOAD.at(self._desk.market.load(capacity, now_s))
        yield metrics.POOL_SLOTS.at(capacity)
        yield metrics.POOL_OCCUPIED.at(self._roster.occupied)
        yield metrics.WAITING.at(self._desk.waiting)
        workers = self._fleet.workers
        yield metrics.WORKERS.at(len(workers))
        yield metrics.WORKERS_AVAILABLE.at(sum(worker.available for worker in workers))
        yield metrics.WORKERS_EJECTED.at(sum(worker.ejected_until_s is not None for worker in workers))
        yield metrics.CONTROLLERS.at(self._shared.controllers)
        outage = self._shared.outage
        yield metrics.STORE_OUTAGE.at(0.0 if outage is None else now_s - outage.since_s)

    def _policies(self) -> Iterator[Reading]:
        yield from _reloads("active", self._policy.reloads, self._policy.rejected)
        shadow = self._journal.shadow
        if shadow is None:
            return
        yield from _reloads("shadow", shadow.reloads, shadow.rejected)
        yield metrics.SHADOW_FAULTS.at(shadow.faults)
        for name in self._named.all:
            seen = shadow.differences(name)
            yield metrics.SHADOW_COMPARED.at(seen.compared, name)
            yield metrics.SHADOW_DIFFERENCES.at(seen.admission, name, "admission")
            yield metrics.SHADOW_DIFFERENCES.at(seen.mode, name, "mode")
            yield metrics.SHADOW_DIFFERENCES.at(seen.budget, name, "budget")


def _reloads(which: str, reloads: Reloads, rejected: PolicyError | None) -> Iterator[Reading]:
    yield metrics.POLICY_RELOADS.at(reloads.ok, which, "ok")
    yield metrics.POLICY_RELOADS.at(reloads.rejected, which, "rejected")
    yield metrics.POLICY_REJECTED.at(rejected is not None, which)
