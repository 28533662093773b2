"""When those that are refused are told to come again, so that they do not come together."""

from __future__ import annotations

from controller.planning.price import CLEAR_WAITING_S

MOST_RETRY_S = 60.0
"""Longer than this nobody is sent away."""
PART_FOR_RETURNS = 0.5
"""Of a tenant's share of the pool: the rest is for those that come for the first time."""
SOONEST_S = 1.0
"""Sooner nobody comes again who found no worker."""
JITTER = 0.25
"""By up to this part times differ from the ones computed."""


class Returns:
    """Gives each refused request a time of its own, at which its tenant's share of the pool has had time for
    those refused before: the more are refused, the longer the window over which they return.

    One time per tenant is kept, at which all refused so far would have been served; a virtual clock as in
    GCRA (`controller.state.bucket`).
    """

    def __init__(self) -> None:
        self._served_s: dict[str, float] = {}

    def next_s(self, tenant: str, slot_s: float, share: float, jitter: float, now_s: float) -> float:
        """Seconds after which a request of so many slot-seconds is to come again. share: slots that are the
        tenant's; 0 of one that nothing is known of. jitter: in [-1, 1].
        """
        soonest_s = now_s + CLEAR_WAITING_S
        served_s = max(soonest_s, self._served_s.get(tenant, 0.0))
        if share > 0:
            most_s = now_s + MOST_RETRY_S
            self._served_s[tenant] = min(most_s, served_s + slot_s / (PART_FOR_RETURNS * share))
        return (served_s - now_s) * (1 + JITTER * jitter)


class Paced:
    """The same for those that are refused since there is nobody to serve anyone: they come again at a pace
    that is bearable, however many they are.
    """

    def __init__(self, per_s: float) -> None:
        self._each_s = 1 / per_s
        self._next_s = 0.0

    def next_s(self, jitter: float, now_s: float) -> float:
        """Seconds after which the one that is refused now is to come again. jitter: in [-1, 1]."""
        mine_s = max(now_s + SOONEST_S, self._next_s)
        self._next_s = min(mine_s + self._each_s, now_s + MOST_RETRY_S)
        return (mine_s - now_s) * (1 + JITTER * jitter)
