"""Puts the controller together, runs it and ends it."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from controller.desk import Desk, Tenants
from controller.desk.desk import spread_evenly
from controller.fleet import Fleet, Roster
from controller.planning.calibration import BEGIN, FURTHEST
from controller.planning.outcomes import Outcomes
from controller.policy import LivePolicy, Policy
from controller.service.admin import AdminServicer
from controller.service.gate import Gate
from controller.service.journal import Journal
from controller.service.membership import Membership, Sources
from controller.service.reasoning import ReasoningServicer
from controller.service.reception import Reception
from controller.service.recording import Recorder
from controller.service.registry import RegistryServicer
from controller.service.requests import Requests
from controller.service.security import OPEN, Security
from controller.service.shadow import ShadowPolicy
from controller.service.sharing import share_pool
from controller.state.memory import MemoryStore
from controller.state.shared import SharedState
from controller.state.store import Level, Store
from controller.telemetry.named import NamedTenants
from controller.telemetry.readings import ControllerReadings
from controller.telemetry.requests import RequestMetrics
from controller.telemetry.settings import TelemetrySettings
from controller.telemetry.spans import log_request, trace_request
from curfew.rpc.server import Server
from curfew.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    reasoning_pb2,
    reasoning_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

if TYPE_CHECKING:
    from controller.http.server import HttpServer

REASONING = reasoning_pb2.DESCRIPTOR.services_by_name["ReasoningService"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
REGISTRY = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
MAX_MESSAGE_BYTES = 4 * 2**20
POLICY_HEALTH = "curfew.policy"
"""What operators ask the health service for to learn whether the policy file, as read last, is in force."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """HOST:PORT of the doors. Port 0 picks a free one. http: None opens no such door."""

    listen: str
    admin: str
    http: str | None = None


class Controller:
    """The running controller: two servers, the fleet, and what is between them.

    Callers' health is SERVING while there is a worker to choose; operators' while the controller runs, and
    under `POLICY_HEALTH` while the policy file, as it was read last, is in force.
    """

    def __init__(
        self,
        policy: LivePolicy,
        sources: Sources,
        clock: Callable[[], float],
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
        *,
        shadow: Callable[[], Policy] | None = None,
        recorder: Recorder | None = None,
        recorded_labels: Set[str] = frozenset(),
        store: Store | None = None,
        store_optional: bool = False,
        telemetry: TelemetrySettings | None = None,
        security: Security = OPEN,
    ) -> None:
        """sources: of workers. shadow: loads the policy that decides without acting. recorder: closed by
        `stop`. recorded_labels: names of the labels that are recorded. store: shared with other controllers;
        closed by `stop`. None keeps what would be shared in memory. store_optional: whether to start without
        it. telemetry: None tells nothing. security: who may connect to what, and how.
        """
        self._policy = policy
        self._availability: asyncio.Queue[bool] = asyncio.Queue()
        roster = Roster(lot=random.random)
        store = store or MemoryStore(clock)
        self.shared = SharedState(
            store,
            Level(-FURTHEST, FURTHEST),
            BEGIN,
            clock,
            random.random,
            lambda: secrets.token_hex(8),
        )
        tenants = Tenants(self.shared)
        desk = Desk(roster, tenants, spread_evenly(), self.shared)
        reception = Reception(desk, clock)
        share_pool(self.shared, desk, reception, clock)
        roster.on_change = reception.news
        self._fleet = Fleet(roster, clock, self._availability.put_nowait, security.workers)
        self._membership = Membership(sources, store, self._fleet)
        self._tokens = security.tokens
        self.shadow = None if shadow is None else ShadowPolicy(shadow, desk)
        self._recorder = recorder
        self._store_optional = store_optional
        telemetry = telemetry or TelemetrySettings()
        named = NamedTenants(policy, telemetry.most_tenants)
        counted, tracing = RequestMetrics(named.label), telemetry.tracing
        parts = (
            (telemetry.counted, counted.note),
            (tracing is not None, trace_request),
            (telemetry.logged, log_request),
        )
        observers = [*(observe for wanted, observe in parts if wanted), *telemetry.also]
        journal = Journal(clock, self.shadow, recorder, recorded_labels, observers, tracing)
        self.readings = ControllerReadings(
            policy, desk, roster, self._fleet, journal, self.shared, named, counted, clock
        )
        requests = Requests(
            policy,
            desk,
            reception,
            roster,
            self._fleet,
            Outcomes(),
            journal,
            self.shared,
            clock,
            new_id,
            security.tokens,
        )
        self._callers = Server(
            max_message_bytes=MAX_MESSAGE_BYTES,
            interceptors=[Gate(policy, security.tokens)],
            tls=security.callers,
        )
        self._operators = Server(
            max_message_bytes=MAX_MESSAGE_BYTES,
            tls=security.operators,
            authorise=security.door.authorise,
            shows_connections=True,
        )
        reasoning_pb2_grpc.add_ReasoningServiceServicer_to_server(
            ReasoningServicer(requests), self._callers.grpc
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(policy, desk, roster, self._fleet, journal, self.shared, clock),
            self._operators.grpc,
        )
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(store), self._operators.grpc)
        self._requests = requests
        self._tls = security.callers
        self._http: HttpServer | None = None
        self._health_task: asyncio.Task[None] | None = None
        self._had_worker = asyncio.Event()

    async def start(self, addresses: Addresses) -> Addresses:
        """Binds and serves. Returns the bound addresses; raises OSError when one cannot be had, StoreError
        when the store cannot be reached.
        """
        await self.shared.start(required=not self._store_optional)
        if self._tokens is not None:
            await self._tokens.keys.start()
        listen = await self._callers.start(addresses.listen, [REASONING])
        admin = await self._operators.start(addresses.admin, [ADMIN, REGISTRY])
        await self._operators.set_serving(True)
        await self._operators.set_detail(POLICY_HEALTH, True)
        http = None if addresses.http is None else await self._start_http(addresses.http)
        self._policy.on_read = partial(self._operators.set_detail, POLICY_HEALTH)
        self._health_task = asyncio.create_task(self._report_availability())
        self._fleet.start()
        self._membership.start()
        return Addresses(listen, admin, http)

    async def had_worker(self, within_s: float) -> bool:
        """Waits until a worker has been available, at most so long. Returns whether there was one."""
        try:
            await asyncio.wait_for(self._had_worker.wait(), within_s)
        except TimeoutError:
            return False
        return True

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, refuses new requests, lets those that run end within `grace_s`, ends the rest."""
        if self._health_task is not None:
            self._health_task.cancel()
        # Operators may look on until the last request has ended.
        drains = [self._callers.drain(grace_s)]
        if self._http is not None:
            drains.append(self._http.drain(grace_s))
        await asyncio.gather(*drains)
        await self._operators.drain(0.0)
        await self._membership.stop()
        await self._fleet.close()
        await self.shared.stop()
        if self._tokens is not None:
            await self._tokens.keys.close()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    async def _start_http(self, address: str) -> str:
        # Its libraries take a while to import, and are not needed by who does not serve it.
        from controller.http.server import HttpServer

        self._http = HttpServer(self._requests, time.time, most_bytes=MAX_MESSAGE_BYTES, tls=self._tls)
        return await self._http.start(address)

    async def _report_availability(self) -> None:
        while True:
            available = await self._availability.get()
            await self._callers.set_serving(available)
            if available:
                self._had_worker.set()
