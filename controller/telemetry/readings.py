"""Reads at each scrape what the controller knows anyway."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from controller.desk import Desk
from controller.fleet import Fleet, Roster
from controller.policy import Brownout, LivePolicy, PolicyError, Reloads, TenantPolicy
from controller.service.journal import Journal
from controller.state.shared import SharedState
from controller.telemetry.requests import RequestMetrics
from curfew.telemetry import controller_metrics as metrics
from curfew.telemetry.controller_metrics import MOST_TENANTS
from curfew.telemetry.metric import Counts, Reading, Shown

OTHER = "other"

_LEVEL = {brownout: level for level, brownout in enumerate(Brownout)}


class ControllerReadings:
    """All metrics of one controller.

    The first tenants of the policy have metrics of their own; what can be added up of the rest, and of those
    that no policy names any more, is `other`.
    """

    def __init__(
        self,
        policy: LivePolicy,
        desk: Desk,
        roster: Roster,
        fleet: Fleet,
        journal: Journal,
        shared: SharedState,
        requests: RequestMetrics,
        clock: Callable[[], float],
        most_tenants: int = MOST_TENANTS,
    ) -> None:
        self._policy, self._desk, self._roster, self._fleet = policy, desk, roster, fleet
        self._journal, self._shared, self._requests, self._clock = journal, shared, requests, clock
        self._most_tenants = most_tenants
        self._began_s = clock()

    def read(self) -> Iterator[Reading]:
        """How everything stands now."""
        now_s = self._clock()
        policy = self._policy.current
        named = dict(itertools.islice(policy.tenants.items(), self._most_tenants))

        def shown(tenant: str) -> str:
            return tenant if tenant in named else OTHER

        for name in named:
            self._requests.expect(name)
        yield metrics.INFO.at(1, version("curfew"), policy.version)
        yield metrics.UPTIME.at(now_s - self._began_s)
        yield from self._requests.read(shown)
        yield from self._tenants(named, now_s)
        yield from self._standings(shown)
        yield from self._pool(now_s)
        yield from self._policies(shown)
        recorder = self._journal.recorder
        if recorder is not None:
            yield metrics.RECORDED.at(recorder.state.written)
            yield metrics.RECORDING_LOST.at(recorder.state.lost)

    def _standings(self, shown: Shown) -> Iterable[Reading]:
        """What tenants' standings count."""
        kept, promised, held = (
            Counts(metric) for metric in (metrics.KEPT, metrics.PROMISED, metrics.PREDICTIONS_HELD)
        )
        decisions, tokens = Counts(metrics.DECISIONS), Counts(metrics.TOKENS)
        for name in self._desk.tenants:
            standing = self._desk.tenants[name].standing
            kept.add(standing.kept, name)
            promised.add(standing.promised_sum, name)
            held.add(standing.held, name)
            for brownout, decided in standing.decided.items():
                decisions.add(decided, name, brownout.value)
            tokens.add(standing.reasoning_tokens, name, "reasoning")
            tokens.add(standing.output_tokens - standing.reasoning_tokens, name, "answer")
            tokens.add(standing.probe_tokens, name, "probe")
        return itertools.chain.from_iterable(
            counts.read(shown) for counts in (kept, promised, held, decisions, tokens)
        )

    def _tenants(self, named: Mapping[str, TenantPolicy], now_s: float) -> Iterator[Reading]:
        """What cannot be added up."""
        for name, policy in named.items():
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

    def _policies(self, shown: Shown) -> Iterator[Reading]:
        yield from _reloads("active", self._policy.reloads, self._policy.rejected)
        shadow = self._journal.shadow
        if shadow is None:
            return
        yield from _reloads("shadow", shadow.reloads, shadow.rejected)
        yield metrics.SHADOW_FAULTS.at(shadow.faults)
        compared, differences = Counts(metrics.SHADOW_COMPARED), Counts(metrics.SHADOW_DIFFERENCES)
        for name in self._desk.tenants:
            seen = shadow.differences(name)
            compared.add(seen.compared, name)
            differences.add(seen.admission, name, "admission")
            differences.add(seen.mode, name, "mode")
            differences.add(seen.budget, name, "budget")
        yield from compared.read(shown)
        yield from differences.read(shown)


def _reloads(which: str, reloads: Reloads, rejected: PolicyError | None) -> Iterator[Reading]:
    yield metrics.POLICY_RELOADS.at(reloads.ok, which, "ok")
    yield metrics.POLICY_RELOADS.at(reloads.rejected, which, "rejected")
    yield metrics.POLICY_REJECTED.at(rejected is not None, which)
