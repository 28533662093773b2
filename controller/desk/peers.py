"""What a desk shares with those of other controllers of the same pool."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from controller.planning.calibration import OwnOffset
from controller.planning.price import NOTHING_ASKED, Asked
from controller.state.store import Head


class Peers(Protocol):
    """Counters that all controllers move. Nothing here waits: what others do is seen a moment later."""

    def served(self, tenant: str) -> float:
        """What a tenant was served by all controllers: slot-seconds over its weight."""
        ...

    def serve(self, tenant: str, amount: float) -> None:
        """Adds to that; negative where it is given back."""
        ...

    def lift_served(self, tenant: str, at_least: float) -> None:
        """Raises it to this, unless it is more."""
        ...

    def offset(self, tenant: str) -> float:
        """The offset of a tenant's calibration, `controller.planning.calibration.Offset`."""
        ...

    def step_offset(self, tenant: str, by: float) -> None:
        """Moves it."""
        ...


class Alone:
    """The counters of a controller that has no peers."""

    def __init__(self) -> None:
        self._served: defaultdict[str, float] = defaultdict(float)
        self._offsets: defaultdict[str, OwnOffset] = defaultdict(OwnOffset)

    def served(self, tenant: str) -> float:
        """What a tenant was served: slot-seconds over its weight."""
        return self._served[tenant]

    def serve(self, tenant: str, amount: float) -> None:
        """Adds to that; negative where it is given back."""
        self._served[tenant] += amount

    def lift_served(self, tenant: str, at_least: float) -> None:
        """Raises it to this, unless it is more."""
        self._served[tenant] = max(self._served[tenant], at_least)

    def offset(self, tenant: str) -> float:
        """The offset of a tenant's calibration."""
        return self._offsets[tenant].read()

    def step_offset(self, tenant: str, by: float) -> None:
        """Moves it."""
        self._offsets[tenant].step(by)


class SharedOffset:
    """The offset of a tenant's calibration that all controllers move."""

    __slots__ = ("_peers", "_tenant")

    def __init__(self, peers: Peers, tenant: str) -> None:
        self._peers, self._tenant = peers, tenant

    def read(self) -> float:
        """Where it is."""
        return self._peers.offset(self._tenant)

    def step(self, by: float) -> None:
        """Moves it."""
        self._peers.step_offset(self._tenant, by)


@dataclass(frozen=True, slots=True)
class PoolNews:
    """What one controller, or all others together, want of the pool now.

    asked: by their callers. heads: of their queues, one of each controller where somebody waits. reached:
    `WaitingRoom.reached`, the most.
    """

    asked: Asked = NOTHING_ASKED
    heads: tuple[Head, ...] = ()
    reached: float = 0.0
