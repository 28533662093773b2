"""Between the desk and what controllers share: tells the others of this pool, and the desk of theirs."""

from __future__ import annotations

from collections.abc import Callable

from controller.desk import Desk
from controller.desk.peers import PoolNews
from controller.planning.price import Asked
from controller.service.reception import Reception
from controller.state.shared import SharedState
from controller.state.store import Demand

POOL = "default"
"""A controller has one pool; controllers with one store have the same."""


def share_pool(shared: SharedState, desk: Desk, reception: Reception, clock: Callable[[], float]) -> None:
    """With each exchange, and never between: no decision waits for it."""

    def tell() -> None:
        news = desk.tell(clock())
        asked = news.asked
        (head,) = news.heads or (None,)
        demand = Demand(asked.by_bucket, asked.capacity, asked.weight, head, news.reached)
        shared.publish_demand(POOL, demand)

    def hear() -> None:
        others = shared.others_demand(POOL)
        asked = Asked(others.by_price, others.capacity, others.weight)
        desk.hear(PoolNews(asked, tuple(shared.others_heads(POOL)), others.reached))
        reception.news()

    shared.before_exchange, shared.after_exchange = tell, hear
