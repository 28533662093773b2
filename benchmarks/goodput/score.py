"""What a way of deciding is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Came:
    """What came of a question. right: its answer is, or the probability that it is. promised: that it keeps
    its deadline, None without a promise.
    """

    tenant: str
    answered: bool
    in_time: bool
    right: float
    promised: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """What came of a scenario's questions.

    goodput: the share of all questions, refused ones included, that were answered rightly and in time.
    by_tenant: the same for each. attained: by tenant, the share in time, of its answers. covered, promised:
    of all answers that were promised something, the share in time, and the mean of what they were promised.
    """

    goodput: float
    by_tenant: Mapping[str, float]
    attained: Mapping[str, float]
    covered: float
    promised: float

    @classmethod
    def of(cls, all_came: Iterable[Came]) -> Score:
        """Counts."""
        good: dict[str, list[float]] = {}
        attained: dict[str, list[bool]] = {}
        promised: list[float] = []
        covered: list[bool] = []
        for came in all_came:
            good.setdefault(came.tenant, []).append(came.right * (came.answered and came.in_time))
            if came.answered:
                attained.setdefault(came.tenant, []).append(came.in_time)
                if came.promised is not None:
                    promised.append(came.promised)
                    covered.append(came.in_time)
        return cls(
            _mean([value for values in good.values() for value in values]),
            {tenant: _mean(values) for tenant, values in sorted(good.items())},
            {tenant: _mean(values) for tenant, values in sorted(attained.items())},
            _mean(covered),
            _mean(promised),
        )


def _mean(values: list[float] | list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
