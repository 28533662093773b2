"""Shares of one pool, whatever controllers the tenants ask at."""

from __future__ import annotations

import pytest

from controller.policy import Brownout, ModePolicy, TenantPolicy
from tests.controller.desk.doors import Doors
from tests.controller.desk.pool import policy

WARM_S, WINDOW_S = 10.0, 20.0
SHORT, MIXED = (0.06, 0.06), (0.1, 0.4)
"""Seconds that requests take."""


def tenant(name: str, weight: float) -> TenantPolicy:
    return policy(name, deadline_s=None, weight=weight, mode=ModePolicy.NO_THINK, brownout=Brownout.NONE)


HEAVY, LIGHT = tenant("heavy", 4.0), tenant("light", 1.0)

Ingress = tuple[tuple[int, int], ...]
"""Callers of heavy and of light at each controller."""


def doors(slots: int, seconds: tuple[float, float], ingress: Ingress) -> Doors:
    opened = Doors(len(ingress), slots, seconds)
    for door, (heavy, light) in zip(opened.doors, ingress, strict=True):
        door.keep_asking(HEAVY, heavy)
        door.keep_asking(LIGHT, light)
    return opened


@pytest.mark.parametrize(
    ("slots", "seconds"), [(4, SHORT), (8, MIXED)], ids=["few short requests", "requests of all lengths"]
)
@pytest.mark.parametrize(
    "ingress",
    [
        ((24, 0), (0, 24)),
        ((22, 2), (2, 22)),
        ((24, 12), (0, 12)),
        ((12, 0), (12, 24)),
        ((24, 0), (0, 4)),
        ((24, 0), (24, 0), (24, 0), (24, 0), (24, 0), (24, 0), (24, 0), (24, 0), (0, 24)),
    ],
    ids=[
        "each its own",
        "mostly its own",
        "light at both",
        "heavy at both",
        "few callers of light",
        "light at one of nine",
    ],
)
def test_four_to_one_however_callers_are_spread_and_no_slot_stands_idle(
    slots: int, seconds: tuple[float, float], ingress: Ingress
) -> None:
    pool = doors(slots, seconds, ingress)
    pool.run(WARM_S)
    served, used = pool.serve(WINDOW_S)
    assert served["heavy"] / served["light"] == pytest.approx(4.0, rel=0.05 if len(ingress) == 2 else 0.1)
    assert used > 0.97


def test_who_waits_alone_gets_all() -> None:
    pool = doors(8, MIXED, ((24, 0), (0, 0)))
    pool.run(2.0)
    served, used = pool.serve(5.0)
    assert used > 0.97
    assert list(served) == ["heavy"]


def test_a_controller_that_falls_silent_costs_the_others_no_slot() -> None:
    """It may have died, and its part of the pool is still told of."""
    pool = doors(8, MIXED, ((24, 0), (0, 24)))
    pool.run(5.0)
    pool.silence(1)
    _, used = pool.serve(3.0)
    assert used > 0.97


def test_nobody_saves_up_at_a_controller_that_has_served_nobody() -> None:
    """Light comes to an idle controller long after heavy had all of the pool: it gets its share, not more."""
    pool = doors(8, MIXED, ((24, 0), (0, 0)))
    pool.run(20.0)
    pool.doors[1].keep_asking(LIGHT, 24)
    served, _ = pool.serve(10.0)
    assert served["heavy"] / served["light"] == pytest.approx(4.0, rel=0.15)
