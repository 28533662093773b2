"""Lengths by the prompt's length, told apart where the prompt's length tells something.

How long a tenant's reasoning and answers get often follows from what was asked, of which a prompt's length is
the part that costs nothing to know. How, nobody knows beforehand: a few characters may matter (another
summand), or only thousands of tokens (another document), or nothing. So no bins are fixed. The tenant's own
requests, ordered by their prompts, are halved again and again, for as long as the two halves' lengths differ
by more than chance: a survival tree (Segal 1988; LeBlanc & Crowley 1993) over one variable. It sees only the
order of the prompts, so 2 to 8 summands are told apart just as 30 to 100,000 tokens are; classes lie close
where a tenant has many requests; and prompts that tell nothing stay one class, whose larger sample vouches
for higher quantiles.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

CHANCE = 6.63
"""The square of the log-rank statistic that chance exceeds in one of 100 halvings (chi-square, 1 degree)."""
MOST_NEW = 32
"""Samples after which the classes are made anew: with a full window that takes about 2 ms, so well below 0.1
ms a request.
"""


Sample = tuple[int, int, bool, float]
"""Tokens of the prompt, about; the length seen after it, in tokens; whether it ended by itself, or was cut
there; when it was seen, in seconds. A plain tuple: a controller holds a million, and the garbage collector
does not follow those of plain numbers.
"""
_PROMPT: Final = 0
_SEEN: Final = 3


class PromptStrata(Generic[T]):
    """The last lengths of one kind, none older than `max_age_s`, summed up by classes of prompts.

    Classes are made as samples come, not as decisions are made, when more than an eighth of the samples, or
    more than `MOST_NEW`, are new. A decision looks its class up by bisection.
    """

    def __init__(
        self, size: int, max_age_s: float, least_class: int, sum_up: Callable[[Collection[Sample]], T]
    ) -> None:
        """least_class: samples below which a class is not formed."""
        self._samples: deque[Sample] = deque(maxlen=size)
        self._max_age_s = max_age_s
        self._least_class = least_class
        self._sum_up = sum_up
        self._new = 0
        self._expires_s = math.inf
        self._begins: list[int] = []
        self._overall = sum_up(())
        self._classes = [self._overall]

    def add(self, sample: Sample) -> None:
        """Takes a sample; when it was seen must not go back."""
        self._samples.append(sample)
        self._new += 1
        if self._new > min(MOST_NEW, len(self._samples) // 8):
            self._divide(sample[_SEEN])

    def overall(self, now_s: float) -> T:
        """Of all prompts, as of `now_s`, which must not go back."""
        if now_s >= self._expires_s:
            self._divide(now_s)
        return self._overall

    def of(self, prompt_tokens: int, now_s: float) -> T:
        """Of prompts like one of about so many tokens, as of `now_s`, which must not go back."""
        if now_s >= self._expires_s:
            self._divide(now_s)
        return self._classes[bisect_right(self._begins, prompt_tokens)]

    def _divide(self, now_s: float) -> None:
        samples = self._samples
        while samples and samples[0][_SEEN] <= now_s - self._max_age_s:
            samples.popleft()
        self._new = 0
        # Dropping a few at a time would divide at every call.
        self._expires_s = samples[0][_SEEN] + 1.25 * self._max_age_s if samples else math.inf
        classes = list(_classes(sorted(samples), self._least_class))
        self._begins = [members[0][_PROMPT] for members in classes[1:]]
        self._overall = self._sum_up(samples)
        self._classes = [self._sum_up(members) for members in classes] if self._begins else [self._overall]


def _classes(members: Sequence[Sample], least: int) -> Iterator[Sequence[Sample]]:
    """Divides samples ordered by their prompts."""
    middle = _middle(members, least)
    if middle is None or not _differ(members[:middle], members[middle:]):
        yield members
        return
    yield from _classes(members[:middle], least)
    yield from _classes(members[middle:], least)


def _middle(members: Sequence[Sample], least: int) -> int | None:
    """Where to halve samples so that equal prompts stay together: the nearest place to the middle; None when
    a half would be too small.
    """
    half = len(members) // 2
    if half < least:
        return None
    prompt = members[half][_PROMPT]
    below = above = half
    while below > 0 and members[below - 1][_PROMPT] == prompt:
        below -= 1
    while above < len(members) and members[above][_PROMPT] == prompt:
        above += 1
    places = [place for place in (below, above) if least <= place <= len(members) - least]
    return min(places, key=lambda place: abs(place - half), default=None)


def _differ(some: Sequence[Sample], others: Sequence[Sample]) -> bool:
    """The log-rank test (Mantel 1966), which takes what was cut for what it shows."""
    ends = sorted(
        [(tokens, stopped, True) for _, tokens, stopped, _ in some]
        + [(tokens, stopped, False) for _, tokens, stopped, _ in others]
    )
    at_risk, some_at_risk = len(ends), len(some)
    excess = variance = 0.0
    index = 0
    while index < len(ends):
        tokens = ends[index][0]
        stops = some_stops = leaving = some_leaving = 0
        while index < len(ends) and ends[index][0] == tokens:
            _, stopped, is_some = ends[index]
            stops += stopped
            some_stops += stopped and is_some
            leaving += 1
            some_leaving += is_some
            index += 1
        if stops and at_risk > 1:
            share = some_at_risk / at_risk
            excess += some_stops - stops * share
            variance += stops * share * (1 - share) * (at_risk - stops) / (at_risk - 1)
        at_risk -= leaving
        some_at_risk -= some_leaving
    return variance > 0 and excess * excess > CHANCE * variance
