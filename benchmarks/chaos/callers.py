"""Those who ask, and what they see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from benchmarks.chaos.system import digest, key
from curfew.client import (
    Adjustment,
    AsyncClient,
    Completion,
    CurfewError,
    Delta,
    Overloaded,
    Phase,
    Plan,
    Sampling,
    Unavailable,
)
from demo.problems import MAX_NUMBERS, MIN_NUMBERS, draw

MOST_ASKS = 5
"""Times that a caller asks one thing: a stream that broke off is asked anew, at another controller."""
GIVE_UP_S = 60.0
"""Of one stream: whoever waits longer has been lost."""
ANSWER_TOKENS = 12
QUESTIONS = 12
"""Different ones; each tenant asks them all again and again."""


class Outcome(Enum):
    """What became of a request. LOST: it hung, or ended in a way that tells the caller nothing."""

    ANSWERED = "answered"
    FAILED_CLEANLY = "failed cleanly"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Tenant:
    """settings: its own lines in the policy. temperature: of its requests. deadline_s: that it is promised;
    None for whoever has only tokens to count.
    """

    name: str
    settings: str
    temperature: float = 0.0
    deadline_s: float | None = None


TENANTS = (
    Tenant("cut", "mode: think, brownout: none, budget: {min: 40, max: 40}"),
    Tenant("whole", "mode: think, brownout: none, budget: {min: 200, max: 200}"),
    Tenant("drawn", "mode: think, brownout: none, budget: {min: 200, max: 200}", temperature=0.8),
    Tenant("limited", "mode: no_think, limits: {rate: 1000/s, concurrency: 100}"),
    Tenant("hurried", "objectives: {deadline: 2s, share: p90}", deadline_s=2.0),
    Tenant("patient", "objectives: {deadline: 10s, share: p90}, weight: 2", deadline_s=10.0),
)
"""The first have budgets that load does not move; those of the last two it does."""


def policy() -> str:
    """The policy file of these tenants."""
    rows = (f"  - {{name: {t.name}, keys: ['{digest(t.name)}'], {t.settings}}}\n" for t in TENANTS)
    budget = f"budget: {{max: 200, grace: 12, answer: {ANSWER_TOKENS}}}"
    defaults = f"defaults: {{{budget}, otherwise: best_effort}}\n"
    return f"apiVersion: curfew/v1\n{defaults}tenants:\n{''.join(rows)}"


@dataclass(frozen=True, slots=True)
class Ask:
    """What determines every token of a request, but for where its reasoning is cut."""

    tenant: Tenant
    question: str
    seed: int


@dataclass(slots=True)
class Stream:
    """What came on one stream. most_reasoning_tokens: that the budget now in force allows, with its grace."""

    tokens: list[tuple[Phase, int]] = field(default_factory=list)
    plan: Plan | None = None
    most_reasoning_tokens: int = 0
    completion: Completion | None = None
    error: CurfewError | None = None

    @property
    def reasoning_tokens(self) -> int:
        """That came."""
        return sum(phase is Phase.REASONING for phase, _ in self.tokens)

    def take(self, event: Plan | Delta | Adjustment | Completion) -> None:
        """Notes an event."""
        match event:
            case Delta():
                self.tokens += ((event.phase, token) for token in event.token_ids)
            case Completion():
                self.completion = event
            case Plan() | Adjustment():
                if isinstance(event, Plan):
                    self.plan = event
                self.most_reasoning_tokens = event.budget.reasoning_tokens + event.budget.grace_tokens


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over. streams: one for each time that it was asked. latency_s: from the first asking,
    by the caller's clock.
    """

    ask: Ask
    streams: Sequence[Stream]
    latency_s: float

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        last = self.streams[-1]
        if last.completion is not None:
            return Outcome.ANSWERED
        clean = isinstance(last.error, Unavailable | Overloaded)
        return Outcome.FAILED_CLEANLY if clean else Outcome.LOST

    @property
    def in_time(self) -> bool:
        """Whether it was answered within the deadline, all askings together. True without a deadline."""
        limit_s = self.ask.tenant.deadline_s
        return self.outcome is Outcome.ANSWERED and (limit_s is None or self.latency_s <= limit_s)


def asks(count: int, random: Random) -> list[Ask]:
    """Mixed over tenants and questions."""
    questions = [draw(random, random.randint(MIN_NUMBERS, MAX_NUMBERS)).question for _ in range(QUESTIONS)]
    return [
        Ask(TENANTS[number % len(TENANTS)], random.choice(questions), seed=random.randrange(3))
        for number in range(count)
    ]


async def ask_all(
    doors: Sequence[str], what: Sequence[Ask], every_s: float, tell: Callable[[Ended], None]
) -> list[Ended]:
    """Asks one thing after the other at that pace, whatever becomes of those before, and waits for the end of
    all. doors: controllers; every second caller begins at the second.
    """
    async with AsyncExitStack() as stack:
        clients: Mapping[tuple[str, int], AsyncClient] = {
            (tenant.name, first): await stack.enter_async_context(
                AsyncClient([*doors[first:], *doors[:first]], key=key(tenant.name))
            )
            for tenant in TENANTS
            for first in range(len(doors))
        }
        began_s = time.monotonic()

        async def one(number: int, ask: Ask) -> Ended:
            await asyncio.sleep(began_s + number * every_s - time.monotonic())
            ended = await _ask(clients[ask.tenant.name, number // len(TENANTS) % len(doors)], ask)
            tell(ended)
            return ended

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number, ask)) for number, ask in enumerate(what)]
    return [task.result() for task in tasks]


async def _ask(client: AsyncClient, ask: Ask) -> Ended:
    began_s = time.monotonic()
    streams: list[Stream] = []
    while True:
        stream = Stream()
        streams.append(stream)
        sampling = Sampling(temperature=ask.tenant.temperature, seed=ask.seed)
        try:
            async with client.generate(ask.question, sampling=sampling, timeout_s=GIVE_UP_S) as events:
                async for event in events:
                    stream.take(event)
        except CurfewError as error:
            stream.error = error
        broke_off = isinstance(stream.error, Unavailable) and stream.plan is not None
        if not broke_off or len(streams) == MOST_ASKS:
            return Ended(ask, streams, time.monotonic() - began_s)
