"""Quantities as people write them: durations, counts, shares."""

import math
import re
from dataclasses import dataclass

DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(us|ms|s|m|h)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
COUNT = re.compile(r"(\d+(?:\.\d+)?) ?([kM]?)")
_FACTOR = {"": 1, "k": 1_000, "M": 1_000_000}
RATE = re.compile(rf"{COUNT.pattern} ?/ ?(s|m|h)")
PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
QUANTILE = re.compile(r"p(\d+(?:\.\d+)?)")

MAX_DURATION_S = 24 * 3600.0
MAX_COUNT = 1_000_000
MAX_RATE_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a time. amount: above 0. unit: `s`, `m` or `h`, as it was written."""

    amount: float
    unit: str

    @property
    def per_s(self) -> float:
        """In a second."""
        return self.amount / _SECONDS[self.unit]


def shown(value: object) -> str:
    """A value as it stood in the file, cut when it is long."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_duration(value: object) -> float:
    """`800ms`, `10s`, `1.5m`: seconds, above 0 and at most a day.

    Raises ValueError.
    """
    allowed = "a duration such as 800ms, 10s or 1.5m"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write {allowed}")
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{shown(value)} is not a duration; write {allowed}")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= MAX_DURATION_S:
        raise ValueError(f"{shown(value)} is out of range; a duration is above 0 and at most 24h")
    return seconds


def parse_count(value: object) -> int:
    """`2000`, `2k`, `1.5k`: a whole number from 0 to a million.

    Raises ValueError.
    """
    allowed = "a whole number such as 500 or 2k"
    if isinstance(value, str):
        match = COUNT.fullmatch(value)
        if match is None:
            raise ValueError(f"{shown(value)} is not a count; write {allowed}")
        # Rounded first: 1.1 × 1000 is not whole in binary.
        number = round(float(match[1]) * _FACTOR[match[2]], 6)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        raise ValueError(f"{shown(value)} is not a count; write {allowed}")
    if number != math.floor(number):
        raise ValueError(f"{shown(value)} is not whole; write {allowed}")
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"{shown(value)} is out of range; a count is from 0 to 1M")
    return int(number)


def parse_rate(value: object) -> Rate:
    """`50/s`, `600/m`, `2M/m`: above 0 and at most a million a second.

    Raises ValueError.
    """
    match = RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"{shown(value)} is not a rate; write a number in a time such as 50/s, 600/m or 2M/h"
        )
    rate = Rate(round(float(match[1]) * _FACTOR[match[2]], 6), match[3])
    if not 0 < rate.per_s <= MAX_RATE_PER_S:
        raise ValueError(f"{shown(value)} is out of range; a rate is above 0 and at most 1M/s")
    return rate


def parse_share(value: object) -> float:
    """`p95` or `0.95`: a share in (0, 1).

    Raises ValueError.
    """
    allowed = "a share such as p95 or 0.95"
    if isinstance(value, str):
        match = QUANTILE.fullmatch(value)
        if match is None:
            raise ValueError(f"{shown(value)} is not a share; write {allowed}")
        share = round(float(match[1]) / 100, 9)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    else:
        raise ValueError(f"{shown(value)} is not a share; write {allowed}")
    if not 0 < share < 1:
        raise ValueError(f"{shown(value)} is out of range; a share lies between 0 and 1, such as p95 or 0.95")
    return share


def parse_percent(value: object) -> float | None:
    """`10%` as 0.1, from 0 % to 100 %; None for what is not written as a percentage.

    Raises ValueError.
    """
    match = PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    share = float(match[1]) / 100
    if share > 1:
        raise ValueError(f"{shown(value)} is out of range; a percentage is at most 100%")
    return share


def format_duration(seconds: float) -> str:
    """A duration for people: `0.4 ms`, `12 ms`, `2.5 s`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    millis = seconds * 1e3
    return f"{millis:.0f} ms" if millis >= 10 else f"{millis:.2g} ms"


def format_share(share: float) -> str:
    """A share for people: `p95`, `p99.9`."""
    return f"p{share * 100:.6g}"


def format_rate(rate: Rate) -> str:
    """A rate for people: `50/s`, `2M/m`."""
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if rate.amount >= factor:
            return f"{rate.amount / factor:.6g}{letter}/{rate.unit}"
    return f"{rate.amount:.6g}/{rate.unit}"
