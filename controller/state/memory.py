"""The state of controllers in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.state.bucket import charged, corrected, wait_us
from controller.state.store import (
    Ask,
    Demand,
    Level,
    Limit,
    News,
    TenantNews,
    TenantView,
    Verdict,
    View,
    WorkerRecord,
)


@dataclass(slots=True)
class _Tenant:
    served: float = 0.0
    offset: float | None = None
    rate_us: int = 0
    tokens_us: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    """When each ends, in microseconds."""


class MemoryStore:
    """Never fails, and never makes its caller wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds from any beginning."""
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._controllers: dict[str, int] = {}
        self._demands: dict[str, dict[str, tuple[int, Demand]]] = {}
        self._workers: dict[str, tuple[int, WorkerRecord]] = {}

    async def admit(self, ask: Ask) -> Verdict:
        """Checks all limits, then counts in all or in none."""
        now_us = self._now_us()
        tenant = self._tenants.setdefault(ask.tenant, _Tenant())
        limits = ask.limits
        for lease in ask.released:
            tenant.leases.pop(lease, None)
        if limits.concurrency is not None:
            tenant.leases = {lease: end for lease, end in tenant.leases.items() if end > now_us}
        rate_us = limits.rate.cost_us(1) if limits.rate else 0
        tokens_us = limits.tokens.cost_us(ask.tokens) if limits.tokens else 0
        rate_wait = wait_us(limits.rate, tenant.rate_us, rate_us, now_us) if limits.rate else 0
        tokens_wait = wait_us(limits.tokens, tenant.tokens_us, tokens_us, now_us) if limits.tokens else 0
        if rate_wait or tokens_wait:
            refused = Limit.RATE if rate_wait >= tokens_wait else Limit.TOKENS
            return Verdict(refused, max(rate_wait, tokens_wait) / 1e6, now_us)
        if limits.concurrency is not None:
            if len(tenant.leases) >= limits.concurrency:
                return Verdict(Limit.CONCURRENCY, 0.0, now_us)
            tenant.leases[ask.lease] = now_us + round(ask.lease_ttl_s * 1e6)
        if limits.rate:
            tenant.rate_us = charged(limits.rate, tenant.rate_us, rate_us, now_us)
        if limits.tokens:
            tenant.tokens_us = charged(limits.tokens, tenant.tokens_us, tokens_us, now_us)
        return Verdict(None, 0.0, now_us)

    async def exchange(self, news: News) -> View:
        """Takes what a controller has to tell, and tells what all have."""
        now_us = self._now_us()
        expiry_us = now_us + round(news.ttl_s * 1e6)
        lease_us = now_us + round(news.lease_ttl_s * 1e6)
        self._controllers[news.controller] = expiry_us
        self._controllers = {name: end for name, end in self._controllers.items() if end > now_us}
        demands: dict[str, Mapping[str, Demand]] = {}
        for pool, demand in news.demands.items():
            told = self._demands.get(pool, {}) | {news.controller: (expiry_us, demand)}
            self._demands[pool] = {name: entry for name, entry in told.items() if entry[0] > now_us}
            demands[pool] = {name: demand for name, (_, demand) in self._demands[pool].items()}
        tenants = {
            told.tenant: self._tell(news.controller, told, news.level, lease_us, now_us)
            for told in news.tenants
        }
        return View(tenants, demands, len(self._controllers))

    def _tell(
        self, controller: str, news: TenantNews, level: Level, lease_us: int, now_us: int
    ) -> TenantView:
        tenant = self._tenants.setdefault(news.tenant, _Tenant())
        tenant.served = max(tenant.served, news.served_floor)
        if tenant.offset is None:
            tenant.offset = news.offset
        if news.number > tenant.numbers.get(controller, 0):
            tenant.numbers[controller] = news.number
            tenant.served += news.served
            tenant.offset = min(max(tenant.offset + news.offset_step, level.least), level.most)
            tenant.rate_us = corrected(tenant.rate_us, news.rate_us, now_us)
            tenant.tokens_us = corrected(tenant.tokens_us, news.tokens_us, now_us)
        for lease in news.held:
            tenant.leases[lease] = lease_us
        for lease in news.released:
            tenant.leases.pop(lease, None)
        return TenantView(tenant.served, tenant.offset)

    async def announce(self, worker: WorkerRecord, ttl_s: float) -> None:
        """Registers a worker, or renews its lease with what is new of it."""
        self._workers[worker.id] = (self._now_us() + round(ttl_s * 1e6), worker)

    async def withdraw(self, worker_id: str) -> None:
        """Removes a worker at once."""
        self._workers.pop(worker_id, None)

    async def workers(self) -> Mapping[str, WorkerRecord]:
        """The workers whose leases last, by id."""
        now_us = self._now_us()
        self._workers = {name: entry for name, entry in self._workers.items() if entry[0] > now_us}
        return {name: record for name, (_, record) in self._workers.items()}

    async def close(self) -> None:
        """Nothing is held open."""

    def _now_us(self) -> int:
        return round(self._clock() * 1e6)
