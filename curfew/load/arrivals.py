"""When which tenant asks, and how much: by chance at a rate, or as it was recorded."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

COLUMNS = ("arrival_s", "tenant", "input_tokens", "reasoning_tokens", "answer_tokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is due."""

    at_s: float
    """From the start."""
    tenant: str
    input_tokens: int
    reasoning_tokens: int | None = None
    """The most that it may use. None: what the plan decides."""
    answer_tokens: int | None = None
    """The most that it may use, at least 1. None: what the policy gives."""


def poisson(
    rate: float, duration_s: float, tenants: Sequence[str], input_tokens: int, random: Random
) -> list[Arrival]:
    """Independent arrivals, `rate` a second on average, each of any tenant with the same probability."""
    arrivals: list[Arrival] = []
    at_s = random.expovariate(rate)
    while at_s < duration_s:
        arrivals.append(Arrival(at_s, random.choice(tenants), input_tokens))
        at_s += random.expovariate(rate)
    return arrivals


def read_trace(path: Path, *, speed: float = 1.0, lengths: float = 1.0) -> list[Arrival]:
    """Recorded traffic: a CSV file with the columns COLUMNS, of which the last two may be empty.

    speed: how many times as fast as recorded. lengths: what token counts are multiplied by. Raises OSError;
    ValueError names the line.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}:1: no column {', '.join(missing)}")
        arrivals = []
        for row in rows:
            try:
                arrivals.append(_arrival(row, speed, lengths))
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{path}:{rows.line_num}: not an arrival: {dict(row)}") from None
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def spread(arrivals: Iterable[Arrival], tenants: Sequence[str]) -> list[Arrival]:
    """The arrivals in the names of these tenants: who is among them stays, the others take turns in the order
    in which they first appear.
    """
    names = {tenant: tenant for tenant in tenants}
    others = 0
    spread_out = []
    for arrival in arrivals:
        if arrival.tenant not in names:
            names[arrival.tenant] = tenants[others % len(tenants)]
            others += 1
        spread_out.append(
            Arrival(
                arrival.at_s,
                names[arrival.tenant],
                arrival.input_tokens,
                arrival.reasoning_tokens,
                arrival.answer_tokens,
            )
        )
    return spread_out


def question(arrival: Arrival, bytes_per_token: float, random: Random) -> str:
    """A sum to be found, about as long as the arrival's input: no two begin alike, so that no cache helps."""
    length = arrival.input_tokens * bytes_per_token
    text = f"What is {random.randrange(100)} + {random.randrange(100)}"
    while len(text) < length - 1:
        text += f" + {random.randrange(100)}"
    return text + "?"


def _arrival(row: dict[str, str], speed: float, lengths: float) -> Arrival:
    def tokens(name: str) -> int | None:
        return max(1, round(int(row[name]) * lengths)) if row[name] else None

    at_s = float(row["arrival_s"]) / speed
    if not (math.isfinite(at_s) and at_s >= 0):
        raise ValueError(at_s)
    return Arrival(
        at_s, row["tenant"], tokens("input_tokens") or 1, tokens("reasoning_tokens"), tokens("answer_tokens")
    )
