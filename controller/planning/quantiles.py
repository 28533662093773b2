"""Quantiles of what was observed, and how far they can be trusted."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

SOME = 4
"""Samples that tell what is usual, though not yet what is rare."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Sorted samples of a quantity.

    The quantile at level u of n samples is the one of rank ceil(u·(n + 1)), as in split conformal prediction
    (Vovk et al. 2005, §2.2; Lei et al. 2018): if the next value is exchangeable with the samples, it is at
    most that with probability u or more, whatever the distribution. For levels above n / (n + 1) no sample is
    enough.
    """

    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, samples: Iterable[float]) -> Quantiles:
        """Quantiles of samples in any order."""
        return cls(tuple(sorted(samples)))

    def at(self, level: float, beyond: float) -> float:
        """The quantile at a level in (0, 1); where the samples do not reach, the larger of `beyond` and all
        of them.
        """
        count = len(self.values)
        rank = math.ceil(level * (count + 1) - 1e-9)
        if rank <= count:
            return self.values[max(rank, 1) - 1]
        return max(beyond, self.values[-1]) if count else beyond

    @property
    def median(self) -> float | None:
        """The middle of the samples; None of fewer than `SOME`."""
        return self.values[len(self.values) // 2] if len(self.values) >= SOME else None

    def at_best(self, level: float, unseen: float) -> float:
        """The least that the quantile can be, given these samples; `unseen` where they do not bound it.

        The order statistic that lies below the quantile with 95 % confidence (Conover 1999, §3.2, normal
        approximation of the binomial).
        """
        count = len(self.values)
        rank = math.floor(count * level - 1.645 * math.sqrt(count * level * (1 - level)))
        return self.values[rank - 1] if rank >= 1 else unseen


class SampleWindow:
    """The last samples of a quantity, none older than `max_age_s`.

    Age matters as much as number: a pool that refuses everything sees no new samples, and must forget why.
    Sorting is amortised and happens as samples come, not as decisions are made: a table serves until more
    than an eighth of the samples, or more than 16, are new.
    """

    def __init__(self, size: int, max_age_s: float) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=size)
        self._max_age_s = max_age_s
        self._unsorted = 0
        self._table = Quantiles()
        self._expires_s = math.inf

    def add(self, value: float, now_s: float) -> None:
        """Takes a sample observed at `now_s`, which must not go back."""
        self._samples.append((now_s, value))
        self._unsorted += 1
        if self._unsorted > min(16, len(self._samples) // 8):
            self._sort(now_s)

    def table(self, now_s: float) -> Quantiles:
        """Quantiles as of `now_s`, which must not go back."""
        if now_s >= self._expires_s:
            self._sort(now_s)
        return self._table

    def _sort(self, now_s: float) -> None:
        oldest_s = now_s - self._max_age_s
        while self._samples and self._samples[0][0] <= oldest_s:
            self._samples.popleft()
        self._table = Quantiles.of(value for _, value in self._samples)
        self._unsorted = 0
        # Dropping a few at a time would sort at every call.
        self._expires_s = self._samples[0][0] + 1.25 * self._max_age_s if self._samples else math.inf


class SampleStrata:
    """Samples of a quantity by kind; for a kind that has shown too few, those of all kinds.

    Conformal prediction by kind (Mondrian; Vovk et al. 2005, §4.5): what is usual for one need not be for
    another.
    """

    ENOUGH = 20
    """Of a kind's own samples, to go by them alone: a 95th percentile lies among them."""

    def __init__(self, size: int, max_age_s: float) -> None:
        """size, max_age_s: as of `SampleWindow`, for each kind."""
        self._size, self._max_age_s = size, max_age_s
        self._all = SampleWindow(size, max_age_s)
        self._kinds: dict[int, SampleWindow] = {}

    def add(self, kind: int, value: float, now_s: float, *, elsewhere: float | None = None) -> None:
        """Takes a sample of a kind observed at `now_s`, which must not go back.

        elsewhere: what it says about other kinds, when that is not the value itself.
        """
        self._all.add(value if elsewhere is None else elsewhere, now_s)
        window = self._kinds.get(kind)
        if window is None:
            window = self._kinds[kind] = SampleWindow(self._size, self._max_age_s)
        window.add(value, now_s)

    def table(self, kind: int, now_s: float) -> Quantiles:
        """Quantiles for a kind as of `now_s`, which must not go back."""
        window = self._kinds.get(kind)
        if window is not None:
            own = window.table(now_s)
            if len(own.values) >= self.ENOUGH:
                return own
        return self.overall(now_s)

    def overall(self, now_s: float) -> Quantiles:
        """Quantiles of all kinds as of `now_s`, which must not go back."""
        return self._all.table(now_s)
