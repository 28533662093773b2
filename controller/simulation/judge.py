"""Whether a simulated answer is right.

A quality curve says how often answers are right at a budget, all problems together. A single problem is known
better: reasoning that came to its own end did all that it could, and what was cut did worse than the average,
so that both together are the curve.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from controller.policy import Policy, QualityCurve
from controller.simulation.job import Done
from controller.simulation.requests import Request, by_tenant
from controller.simulation.trace import ReasoningEnd

Judge = Callable[[Request, Done], float]
"""The probability that an answer is right."""

UNKNOWN_WHOLE, UNKNOWN_CUT = 1.0, 0.5
"""For a tenant without a curve, as the planner takes it: of an answer whose reasoning came to its own end,
and of any other.
"""


def judge_of(policies: Sequence[Policy], requests: Iterable[Request]) -> Judge:
    """Judges by the curve that the first of the policies has for a tenant.

    How good answers are is a matter of the world and not of a policy: all policies that are compared must be
    given the same judge.
    """
    natures = {
        name: Problems(_curve(policies, name), [request.nature.reasoning_tokens for request in group])
        for name, group in by_tenant(list(requests)).items()
    }

    def judge(request: Request, done: Done) -> float:
        if not done.complete:
            return 0.0
        problems = natures[request.tenant]
        if done.reasoning_end is ReasoningEnd.NATURAL:
            return problems.whole
        return problems.cut_at(done.reasoning_tokens)

    return judge


class Problems:
    """A tenant's problems: how often answers are right, by what became of their reasoning."""

    def __init__(self, curve: QualityCurve | None, lengths: Iterable[int]) -> None:
        """lengths: at which reasoning stops by itself."""
        self._curve = curve
        self._lengths = sorted(lengths)

    @property
    def whole(self) -> float:
        """Of those whose reasoning came to its own end."""
        return UNKNOWN_WHOLE if self._curve is None else self._curve.qualities[-1]

    def cut_at(self, tokens: int) -> float:
        """Of those that wanted more than so many tokens and were cut there; 0 tokens are no_think.

        q(b) = F(b)·whole + (1 − F(b))·cut(b), with F(b) the share that stops within b.
        """
        if self._curve is None:
            return UNKNOWN_CUT
        if tokens == 0:
            return self._curve.qualities[0]
        stopped = bisect_right(self._lengths, tokens) / len(self._lengths)
        if stopped == 1:
            return self.whole
        cut = (self._curve.at(tokens) - stopped * self.whole) / (1 - stopped)
        return min(max(cut, 0.0), self.whole)


def _curve(policies: Sequence[Policy], tenant: str) -> QualityCurve | None:
    curves = (p.tenants[tenant].quality.curve for p in policies if tenant in p.tenants)
    return next((curve for curve in curves if curve is not None), None)
