"""A simulation as one page of HTML: it needs nothing beside itself, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from controller.policy.units import format_duration, format_share
from controller.simulation.plots import Axis, Plot
from controller.simulation.summary import summaries
from controller.simulation.table import COLUMNS, KEPT, LEGEND, Told, groups, percent
from controller.simulation.world import Record, Run

MOST_TENANTS = 12
"""With plots of their own; the others are in the table."""
SLICES = 30
"""Of time, in the plots over time; fewer where a slice would hold too few requests."""
LEAST_IN_SLICE = 8
MOST_BARS = 6
"""Of budgets, beside that of no_think; smaller ones are counted with the first."""

_STYLE = Path(__file__).with_name("report.css")

_FIRST = ' class="first"'


def report(runs: Mapping[str, Run], about: str) -> str:
    """The page. runs: one or two, by the names of their policies."""
    told = {name: summaries(run) for name, run in runs.items()}
    counts: dict[str, int] = {}
    for tenants in told.values():
        for tenant, summary in tenants.items():
            counts[tenant] = max(counts.get(tenant, 0), summary.requests)
    shown = sorted(counts, key=lambda tenant: -counts[tenant])[:MOST_TENANTS]
    records = {tenant: [_of(run.records, tenant) for run in runs.values()] for tenant in shown}
    end_s = max(record.arrived_s for run in runs.values() for record in run.records)
    title = " against ".join(runs)
    over_time = [_kept_over_time(tenant, records[tenant], end_s) for tenant in shown]
    budgets = [_budgets(tenant, records[tenant]) for tenant in shown]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE.read_text()}</style></head><body>",
            f"<h1>{escape(title)}</h1><p>{escape(about)}</p>",
            _key(list(runs)),
            f'<div class="scroll">{_table(told, runs)}</div>',
            f"<p>{LEGEND}</p>",
            "<h2>Promises kept, over time</h2>",
            "<p>By time of arrival; dashed: the share that is promised.</p>",
            _plots(over_time),
            "<h2>Budgets</h2>",
            "<p>Reasoning tokens granted, as a share of the requests answered; 0 is no_think.</p>",
            _plots(budgets),
            "<h2>Accuracy against latency</h2>",
            "<p>Each tenant's quality by the time in which nine in ten of its requests are answered; up and "
            "to the left is better.</p>",
            _plots([_frontier(told)], "plots wide"),
            "<h2>Price and load</h2>",
            "<p>The price is that of a second of a place in a full batch, in quality times weight; an idle "
            "pool has none.</p>",
            _plots(_price(list(runs.values()), end_s)),
            "</body></html>\n",
        ]
    )


def _key(names: Sequence[str]) -> str:
    entries = [f'<span class="s{i}"></span>{escape(name)}' for i, name in enumerate(names)]
    return f'<div class="key">{"".join(entries)}</div>' if len(names) > 1 else ""


def _plots(figures: Sequence[str], kind: str = "plots") -> str:
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _table(told: Told, runs: Mapping[str, Run]) -> str:
    several = len(told) > 1
    head = ["tenant", *(["policy"] if several else []), *(name for name, _ in COLUMNS)]
    rows = [f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>"]
    for tenant, by_policy in groups(told, runs):
        for index, (policy, summary) in enumerate(by_policy.items()):
            cells = [f"<td>{escape(tenant) if index == 0 else ''}</td>"]
            if several:
                cells.append(f'<td class="left">{escape(policy)}</td>')
            for name, cell in COLUMNS:
                mark = ' class="short"' if name == KEPT and summary.short else ""
                cells.append(f"<td{mark}>{escape(cell(summary))}</td>")
            rows.append(f"<tr{_FIRST if index == 0 else ''}>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _kept_over_time(tenant: str, runs: Sequence[Sequence[Record]], end_s: float) -> str:
    minutes = _minutes(end_s)
    plot = Plot(tenant, minutes, Axis("", 0.0, 1.0, lambda share: f"{100 * share:.0f}%"))
    for series, records in enumerate(runs):
        if not records:
            continue
        slices = max(1, min(SLICES, len(records) // LEAST_IN_SLICE))
        total, kept = [0] * slices, [0] * slices
        for record in records:
            index = min(slices - 1, int(slices * record.arrived_s / max(end_s, 1e-9)))
            total[index] += 1
            kept[index] += record.kept
        plot.line(
            [
                ((i + 0.5) * end_s / 60 / slices, kept[i] / total[i] if total[i] else math.nan)
                for i in range(slices)
            ],
            series,
        )
        if series == 0:
            share = records[0].policy.objectives.share
            plot.level(share, format_share(share))
    return plot.svg()


def _minutes(end_s: float) -> Axis:
    return Axis("minutes", 0.0, math.ceil(max(end_s, 1.0) / 6) / 10, lambda minutes: f"{minutes:g}")


def _budgets(tenant: str, runs: Sequence[Sequence[Record]]) -> str:
    """A histogram: no_think, then by powers of two."""
    granted = [
        [r.decision.budget_tokens for r in records if r.decision is not None and r.done is not None]
        for records in runs
    ]
    most = max((budget for budgets in granted for budget in budgets), default=1)
    bounds = [0, 1 << max(0, most.bit_length() - MOST_BARS)]
    while bounds[-1] < most:
        bounds.append(2 * bounds[-1])
    heights = []
    for budgets in granted:
        count = [0] * len(bounds)
        for budget in budgets:
            count[next(i for i, bound in enumerate(bounds) if budget <= bound)] += 1
        heights.append([n / max(1, len(budgets)) for n in count])
    tallest = max((max(h) for h in heights), default=1.0) or 1.0

    def show(position: float) -> str:
        index = int(position)
        inside = position == index + 0.5 and index < len(bounds)
        return ("0" if index == 0 else f"≤{_short(bounds[index])}") if inside else ""

    labels = _Labels("tokens", 0.0, float(len(bounds)), show)
    plot = Plot(tenant, labels, Axis("", 0.0, tallest, lambda share: f"{100 * share:.0f}%"))
    for series, height in enumerate(heights):
        plot.bars(height, series, len(heights))
    return plot.svg()


class _Labels(Axis):
    """An axis with a label in the middle of each place."""

    @property
    def ticks(self) -> list[float]:
        return [index + 0.5 for index in range(int(self.high))]


def _frontier(told: Told) -> str:
    points: dict[str, list[tuple[int, float, float]]] = {}
    for series, summaries_of in enumerate(told.values()):
        for tenant, summary in summaries_of.items():
            if not math.isnan(summary.quality):
                points.setdefault(tenant, []).append((series, max(summary.p90_s, 1e-3), summary.quality))
    times = [seconds for group in points.values() for _, seconds, _ in group] or [1.0]
    x = Axis("time within which 90 % are answered", min(times) / 1.5, max(times) * 1.5, format_duration, True)
    plot = Plot("tenants", x, Axis("", 0.0, 1.0, lambda share: f"{100 * share:.0f}%"))
    names = list(told)
    for tenant, group in points.items():
        plot.join([(seconds, quality) for _, seconds, quality in group])
        for series, seconds, quality in group:
            told_there = f"{tenant}, {names[series]}: {percent(quality)} in {format_duration(seconds)}"
            plot.dot((seconds, quality), series, told_there)
        plot.name(group[0][1:], tenant)
    return plot.svg()


def _price(runs: Sequence[Run], end_s: float) -> list[str]:
    minutes = _minutes(end_s)
    series_of: Sequence[tuple[str, Callable[[tuple[float, float, int, int]], float]]] = (
        ("price", lambda sample: sample[1]),
        ("requests that wait", lambda sample: float(sample[2])),
        ("sequences that run", lambda sample: float(sample[3])),
    )
    figures = []
    for title, read in series_of:
        lines = [_thinned([(sample[0], read(sample)) for sample in run.prices]) for run in runs]
        values = sorted(value for line in lines for _, value in line)
        highest = max(values, default=0.0)
        if title == "price":
            # A moment in which nothing fits has a price without bound, which would flatten all others.
            highest = min(highest, 4 * values[int(0.98 * (len(values) - 1))]) if values else 0.0
        plot = Plot(title, minutes, Axis("", 0.0, highest or 1.0, lambda value: f"{value:.4g}"))
        for series, line in enumerate(lines):
            plot.line([(when_s / 60, value) for when_s, value in line], series)
        figures.append(plot.svg())
    return figures


def _thinned(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most a few hundred points: means of those that lie together."""
    width = max(1, len(samples) // 300)
    groups = [samples[i : i + width] for i in range(0, len(samples), width)]
    return [(group[0][0], sum(value for _, value in group) / len(group)) for group in groups]


def _of(records: Sequence[Record], tenant: str) -> list[Record]:
    return [record for record in records if record.policy.name == tenant]


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
