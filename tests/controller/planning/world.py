"""A small world of chance: callers, a controller's models and a worker that decodes in batches, on a clock of
its own. The planner and what it learns from are the ones that serve.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.planning.calibration import Calibration
from controller.planning.decision import Ask, Decision, Mode
from controller.planning.lengths import LengthModel
from controller.planning.planner import plan
from controller.planning.speed import DecodeCurve, Load, Observation, SpeedEstimate, SpeedModel
from controller.policy import TenantPolicy

SLOTS = 16
CURVE = DecodeCurve.through([(1, 0.0010), (2, 0.0012), (4, 0.0016), (8, 0.0024), (16, 0.0040)])
PREFILL_TOKENS_PER_S = 20_000.0


@dataclass
class Nature:
    """What the world is like, as of a time in seconds.

    slowness: factor on every step. stall_share: of steps that take `stall_s` longer. relay_s: mean of the
    time that a request spends outside the worker. connect_s: longer for each caller's first request.
    """

    slowness: Callable[[float], float] = lambda now_s: 1.0
    stall_share: float = 0.01
    stall_s: float = 0.008
    relay_s: float = 0.003
    connect_s: float = 0.020


@dataclass
class Came:
    """A request that ended."""

    decision: Decision
    latency_s: float
    reasoning_tokens: int

    @property
    def kept(self) -> bool:
        assert self.decision.deadline_s is not None
        return self.latency_s <= self.decision.deadline_s


@dataclass
class Tenant:
    """A tenant of the world, its callers, and all that came."""

    policy: TenantPolicy
    callers: int
    prompt_tokens: int = 60
    mean_reasoning_tokens: int = 45
    calibration: Calibration = field(default_factory=Calibration)
    lengths: LengthModel = field(default_factory=LengthModel)
    came: list[Came] = field(default_factory=list)


@dataclass
class _Request:
    tenant: Tenant
    decision: Decision
    expected: SpeedEstimate
    sent_s: float
    natural: int
    answer: int
    arrived_s: float
    began_s: float = 0.0
    first_s: float = 0.0
    steps: int = 0
    batches: int = 0
    reasoning: int = 0
    answered: int = 0
    closed: bool = False
    stopped: bool = False

    def token(self, now_s: float) -> bool:
        """One more step's token; whether it was the last."""
        if not self.steps:
            self.first_s = now_s
        self.steps += 1
        if self.closed:
            self.answered += 1
            return self.answered >= self.answer
        decision = self.decision
        until_s = decision.reason_until_s
        if self.reasoning >= self.natural:
            self.stopped = self.closed = True
        elif self.reasoning >= decision.budget_tokens + decision.grace_tokens or (
            until_s is not None and now_s - self.sent_s >= until_s
        ):
            self.closed = True
        else:
            self.reasoning += 1
        return False


def run(tenants: list[Tenant], requests: int, seed: int, nature: Nature | None = None) -> None:
    """Has each caller send one request after another, until so many of each tenant have come to an end."""
    _World(tenants, requests, random.Random(seed), nature or Nature()).run()


class _World:
    def __init__(self, tenants: list[Tenant], requests: int, rng: random.Random, nature: Nature) -> None:
        self._tenants, self._requests, self._rng, self._nature = tenants, requests, rng, nature
        self._speed = SpeedModel(CURVE, PREFILL_TOKENS_PER_S, SLOTS)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._in_flight = 0

    def run(self) -> None:
        for tenant in self._tenants:
            for _ in range(tenant.callers):
                self._at(self._rng.uniform(0, 0.01), lambda now_s, t=tenant: self._send(t, now_s, True))  # type: ignore[misc]  # bound early
        self._at(0.0, self._step)
        while min(len(tenant.came) for tenant in self._tenants) < self._requests:
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)

    def _at(self, when_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._count), happen))

    def _relay_s(self) -> float:
        return self._rng.expovariate(2 / self._nature.relay_s)

    def _send(self, tenant: Tenant, now_s: float, first: bool = False) -> None:
        running = min(self._in_flight, SLOTS)
        backlog = sum(request.tenant.prompt_tokens for request in self._waiting)
        load = Load(running, self._in_flight - running, backlog, SLOTS - running)
        expected = self._speed.estimate(load, tenant.prompt_tokens, now_s)
        level = tenant.calibration.level(tenant.policy.objectives.share)
        ask = Ask(tenant.prompt_tokens, tenant.prompt_tokens)
        decision = plan(ask, tenant.policy, tenant.lengths.estimate(now_s), expected, 4096, level=level)
        assert isinstance(decision, Decision)
        rng = self._rng
        arrived_s = now_s + self._relay_s() + (self._nature.connect_s * rng.random() if first else 0.0)
        natural = int(rng.expovariate(1 / tenant.mean_reasoning_tokens))
        request = _Request(tenant, decision, expected, now_s, natural, rng.choice((3, 3, 4, 4, 5)), arrived_s)
        request.closed = decision.mode is Mode.NO_THINK
        self._in_flight += 1
        self._at(arrived_s, lambda _: self._waiting.append(request))

    def _step(self, now_s: float) -> None:
        free = SLOTS - len(self._running)
        begun, self._waiting = self._waiting[:free], self._waiting[free:]
        self._running += begun
        if not self._running:
            self._at(now_s + 0.0005, self._step)
            return
        for request in begun:
            request.began_s = now_s
        nature, rng = self._nature, self._rng
        step_s = CURVE.step_s(len(self._running)) * rng.lognormvariate(0, 0.1) * nature.slowness(now_s)
        step_s += sum(request.tenant.prompt_tokens for request in begun) / PREFILL_TOKENS_PER_S
        if rng.random() < nature.stall_share:
            step_s += nature.stall_s
        end_s = now_s + step_s
        for request in self._running:
            request.batches += len(self._running) if request.steps else 0
        ended = [request for request in self._running if request.token(end_s)]
        for request in ended:
            self._running.remove(request)
            self._at(end_s + self._relay_s(), lambda when_s, r=request, e=end_s: self._end(r, e, when_s))  # type: ignore[misc]  # bound early
        self._at(end_s, self._step)

    def _end(self, request: _Request, ended_s: float, now_s: float) -> None:
        self._in_flight -= 1
        tenant, latency_s = request.tenant, now_s - request.sent_s
        decode_s = ended_s - request.first_s
        seen = Observation(
            tenant.prompt_tokens,
            latency_s - decode_s,
            decode_s,
            request.steps - 1,
            request.batches / max(1, request.steps - 1),
            ended_s - request.began_s,
        )
        self._speed.learn(request.expected, seen, now_s)
        tenant.calibration.note(request.decision.share, latency_s <= request.decision.predicted_s)
        tenant.lengths.learn_answer(request.answered, now_s)
        if request.decision.mode is Mode.THINK:
            tenant.lengths.learn_reasoning(request.reasoning, request.stopped)
        tenant.came.append(Came(request.decision, latency_s, request.reasoning))
        assert not math.isnan(latency_s)
        self._at(now_s + 0.001, lambda when_s: self._send(tenant, when_s))
