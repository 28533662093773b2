"""What a load came to, so far or in the end."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from curfew.load.run import Sample
from curfew.show import spoken

LATE_S = 0.01
"""A request sent so much after its time counts as late: the load was not quite what was asked for."""


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent do not exceed (nearest rank). None of nothing."""
    if not ordered:
        return None
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


class Tally:
    """The requests of one tenant, or of all."""

    def __init__(self) -> None:
        self.ended = 0
        self.answered = 0
        self.kept = 0
        self.late = 0
        self.most_late_s = 0.0
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self.failures: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        """Of the answered ones, in order."""
        self.first_tokens_s: list[float] = []

    def note(self, sample: Sample) -> None:
        """A request has ended."""
        self.ended += 1
        self.late += sample.late_s > LATE_S
        self.most_late_s = max(self.most_late_s, sample.late_s)
        if sample.failure is not None:
            self.failures[sample.failure] += 1
            return
        self.answered += 1
        self.kept += sample.kept
        self.output_tokens += sample.output_tokens
        self.reasoning_tokens += sample.reasoning_tokens
        insort(self.latencies_s, sample.latency_s)
        insort(self.first_tokens_s, sample.first_token_s)

    def as_dict(self, elapsed_s: float) -> dict[str, object]:
        """For programs. Times in seconds, counted from when each request was due; None of nothing."""
        return {
            "sent": self.ended,
            "answered": self.answered,
            "kept": self.kept,
            "kept_share_of_answered": self.kept / self.answered if self.answered else None,
            "kept_share_of_sent": self.kept / self.ended if self.ended else None,
            "failed": dict(self.failures.most_common()),
            "latency_s": {f"p{p}": percentile(self.latencies_s, p) for p in (50, 95, 99)},
            "first_token_s": {f"p{p}": percentile(self.first_tokens_s, p) for p in (50, 95, 99)},
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "output_tokens_per_s": self.output_tokens / elapsed_s if elapsed_s else None,
            "sent_late": self.late,
            "most_late_s": self.most_late_s,
        }


class Report:
    """Samples as they come, by tenant and together."""

    def __init__(self) -> None:
        self.all = Tally()
        self.tenants: dict[str, Tally] = {}

    def note(self, sample: Sample) -> None:
        """A request has ended."""
        self.all.note(sample)
        self.tenants.setdefault(sample.tenant, Tally()).note(sample)

    def as_dict(self, elapsed_s: float) -> dict[str, object]:
        """For programs."""
        tenants = {name: tally.as_dict(elapsed_s) for name, tally in sorted(self.tenants.items())}
        return {"elapsed_s": elapsed_s, **self.all.as_dict(elapsed_s), "tenants": tenants}

    def table(self, elapsed_s: float, due: int) -> Table:
        """For people. due: how many requests there are in all."""
        late = ""
        if self.all.late:
            late = f"; {self.all.late} sent late, by up to {spoken(self.all.most_late_s)}"
        table = Table(
            title=f"{self.all.ended} of {due} requests in {spoken(elapsed_s)}{late}",
            title_justify="left",
            caption=self._failures(),
            caption_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
        )
        for heading in (
            "tenant",
            "sent",
            "answered",
            "kept",
            "p50",
            "p95",
            "p99",
            "1st p50",
            "p99",
            "tokens/s",
        ):
            table.add_column(heading, justify="left" if heading == "tenant" else "right")
        for name, tally in sorted(self.tenants.items()):
            table.add_row(name, *_cells(tally, elapsed_s))
        if len(self.tenants) > 1:
            table.add_row("all", *_cells(self.all, elapsed_s))
        return table

    def _failures(self) -> str | None:
        """Who was not answered, and why."""
        told = [
            f"{name} {count} {reason}"
            for name, tally in sorted(self.tenants.items())
            for reason, count in tally.failures.most_common()
        ]
        return f"not answered: {', '.join(told)}" if told else None


def _cells(tally: Tally, elapsed_s: float) -> list[str]:
    def shown(ordered: Sequence[float], percent: int) -> str:
        value_s = percentile(ordered, percent)
        return "" if value_s is None else spoken(value_s)

    return [
        str(tally.ended),
        str(tally.answered),
        f"{tally.kept / tally.answered:.1%}" if tally.answered else "",
        *(shown(tally.latencies_s, percent) for percent in (50, 95, 99)),
        *(shown(tally.first_tokens_s, percent) for percent in (50, 99)),
        f"{tally.output_tokens / elapsed_s:.0f}" if elapsed_s else "",
    ]
