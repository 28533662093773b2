"""What a store does for controllers. `controller.state.memory` and `controller.state.redis_store` do it.

Every write is safe to repeat: a lease is named by its holder, and what is added to a counter has a number,
which the store applies once. A caller that does not know whether a write arrived therefore writes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from controller.state.bucket import Bucket


class StoreError(Exception):
    """The store cannot be reached or cannot do what it is asked; says why in one line."""


class Limit(Enum):
    """The limits that a tenant may reach, as the policy file names them."""

    RATE = "rate"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's; None sets no limit.

    rate: of requests. tokens: of tokens, prompt and output. concurrency: requests at once, at least 1.
    """

    rate: Bucket | None = None
    tokens: Bucket | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Whether a request may come in.

    lease: a name that no other request has. tokens: that it is expected to take. lease_ttl_s: after so long
    without renewal its place is free again. released: leases that ended before it came.
    """

    tenant: str
    limits: Limits
    lease: str
    tokens: int
    lease_ttl_s: float
    released: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """refused: the limit that is reached; None lets the request in, and counts it. retry_s: when it may come
    in if nothing else does; 0 where that depends on others' ends. at_us: the store's clock at the decision.
    """

    refused: Limit | None
    retry_s: float
    at_us: int


@dataclass(frozen=True, slots=True)
class Level:
    """The range of a calibration offset; it cannot be moved out of it."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class TenantNews:
    """What a controller has to tell about a tenant.

    number: of this news from this controller, rising from 1; what was applied under a number is not applied
    again. 0: nothing is to be added. served: to add to what the tenant was served. served_floor: what it was
    served at least, before `served`. offset_step: to add to its calibration offset; offset: where that begins
    if the store has none. rate_us, tokens_us: costs in time that were let in without asking, negative for
    what is given back. held, released: leases that run on, and that ended.
    """

    tenant: str
    number: int
    served: float
    served_floor: float
    offset_step: float
    offset: float
    rate_us: int
    tokens_us: int
    held: tuple[str, ...]
    released: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TenantView:
    """What all controllers together know of a tenant."""

    served: float
    offset: float


@dataclass(frozen=True, slots=True)
class Head:
    """Who is next at a controller. served: what the tenant was served, over its weight. waiting: of its
    requests, there. weight: of all tenants that wait there.
    """

    tenant: str
    served: float
    waiting: int
    weight: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What a controller's callers ask of a pool at each of a row of prices, and the capacity it sees. weight:
    of the tenants that ask. head: of its queue; None when nobody waits. reached: what the tenants that were
    next had been served, at most.
    """

    by_price: tuple[float, ...] = ()
    capacity: float = 0.0
    weight: float = 0.0
    head: Head | None = None
    reached: float = 0.0


@dataclass(frozen=True, slots=True)
class News:
    """What a controller tells at once. ttl_s: for how long it counts as alive, and its demand as current."""

    controller: str
    tenants: Sequence[TenantNews]
    demands: Mapping[str, Demand]
    level: Level
    ttl_s: float
    lease_ttl_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What comes back: the tenants that were told of, each pool's demand by controller, and how many
    controllers are alive. forgot: the store may have lost everything since the last exchange, as in a
    restart.
    """

    tenants: Mapping[str, TenantView]
    demands: Mapping[str, Mapping[str, Demand]]
    controllers: int
    forgot: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as it announces itself.

    id: that no other has. address: HOST:PORT. model, version: what it serves, of which release. capacity:
    requests at once. load: requests that it has. draining: gets nothing new.
    """

    id: str
    address: str
    model: str
    version: str
    capacity: int
    load: int = 0
    draining: bool = False


class Store(Protocol):
    """Every method is one round trip at most, and raises StoreError."""

    async def admit(self, ask: Ask) -> Verdict:
        """Checks all limits, then counts in all or in none."""
        ...

    async def exchange(self, news: News) -> View:
        """Takes what a controller has to tell, and tells what all have."""
        ...

    async def announce(self, worker: WorkerRecord, ttl_s: float) -> None:
        """Registers a worker, or renews its lease with what is new of it."""
        ...

    async def withdraw(self, worker_id: str) -> None:
        """Removes a worker at once."""
        ...

    async def workers(self) -> Mapping[str, WorkerRecord]:
        """The workers whose leases last, by id."""
        ...

    async def close(self) -> None:
        """Gives connections back."""
        ...
