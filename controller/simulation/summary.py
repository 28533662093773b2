"""What a simulation shows of each tenant, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from controller.simulation.trace import Outcome, ReasoningEnd
from controller.simulation.world import Record, Run


@dataclass(frozen=True, slots=True)
class Summary:
    """A tenant's requests, or everybody's. Shares are of all requests unless they say otherwise.

    target: share that is promised to be kept; NaN for several tenants together. kept: every promise was, and
    what was not served has kept none. quality: of the answers, the mean probability that one is right.
    goodput: right and every promise kept. promised: mean promised probability of what was answered;
    covered: share of these that kept the deadline. budget, reasoning: mean tokens of what was answered.
    whole, cut, no_think: share of what was answered whose reasoning came to its own end, was ended, or was
    not begun. refused, rejected, failed: not served: no plan keeps the promise, others needed the place
    more, a worker did not take it. p50_s, p90_s, p95_s: latency of what was answered.
    """

    requests: int
    target: float
    kept: float
    quality: float
    goodput: float
    promised: float
    covered: float
    budget: float
    reasoning: float
    whole: float
    cut: float
    no_think: float
    refused: float
    rejected: float
    failed: float
    p50_s: float
    p90_s: float
    p95_s: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Summary:
        """Of at least one record."""
        count = len(records)
        outcomes = Counter(record.outcome for record in records)
        answered = [(record, record.done, record.decision) for record in records if record.done is not None]
        ends = Counter(done.reasoning_end for _, done, _ in answered)
        whole, none = ends[ReasoningEnd.NATURAL], ends[ReasoningEnd.NONE]
        targets = {record.policy.objectives.share for record in records}
        latencies = sorted(record.latency_s for record, _, _ in answered)
        decisions = [decision for _, _, decision in answered if decision is not None]
        return cls(
            requests=count,
            target=targets.pop() if len(targets) == 1 else math.nan,
            kept=sum(record.kept for record in records) / count,
            quality=_mean(record.chance for record, _, _ in answered),
            goodput=sum(record.chance for record in records if record.kept) / count,
            promised=_mean(decision.promised_probability for decision in decisions),
            covered=_mean(_in_time(record) for record, _, _ in answered),
            budget=_mean(decision.budget_tokens for decision in decisions),
            reasoning=_mean(done.reasoning_tokens for _, done, _ in answered),
            whole=_share(whole, len(answered)),
            cut=_share(len(answered) - whole - none, len(answered)),
            no_think=_share(none, len(answered)),
            refused=outcomes[Outcome.REFUSED] / count,
            rejected=outcomes[Outcome.REJECTED] / count,
            failed=outcomes[Outcome.FAILED] / count,
            p50_s=quantile(latencies, 0.5),
            p90_s=quantile(latencies, 0.9),
            p95_s=quantile(latencies, 0.95),
        )

    @property
    def short(self) -> bool:
        """Whether less was kept than promised."""
        return self.kept < self.target


def summaries(run: Run) -> dict[str, Summary]:
    """By tenant, in the policy's order; those without requests are left out."""
    grouped: dict[str, list[Record]] = {name: [] for name in run.policy.tenants}
    for record in run.records:
        grouped[record.policy.name].append(record)
    return {name: Summary.of(records) for name, records in grouped.items() if records}


def as_values(summary: Summary) -> dict[str, float | None]:
    """For JSON: what there is no number for is null."""
    return {name: None if math.isnan(value) else round(value, 6) for name, value in asdict(summary).items()}


def quantile(ordered: Sequence[float], level: float) -> float:
    """Of values in ascending order; NaN of none."""
    return ordered[min(len(ordered) - 1, int(level * len(ordered)))] if ordered else math.nan


def _in_time(record: Record) -> bool:
    deadline_s = None if record.decision is None else record.decision.deadline_s
    return deadline_s is None or record.latency_s <= deadline_s


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
