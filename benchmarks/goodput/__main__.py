"""How many requests are answered rightly and in time? `python -m benchmarks.goodput`

Replays a real trace, with problems as hard as its reasoning is long and tenants with deadlines from tight to
loose, against the real worker; with `--simulate`, against a simulated one of a 9B model on an H200. Load 1.0
is that at which all the thinking that requests want takes exactly what a full batch has. Compared with Curfew
are no thinking, unlimited thinking, the best static budget for all, the best for each tenant (both tuned in
hindsight on the same arrivals, in the simulator), yesterday's (tuned for each tenant on the other trace), the
same planner knowing all lengths, and a bound that nothing can pass (both in the simulator). The score is the
share of all requests, refused ones included, that are answered rightly within their tenant's deadline.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from matplotlib import pyplot
from rich.console import Console
from rich.progress import Progress

from benchmarks.goodput import real, simulated, systems
from benchmarks.goodput.accuracy import Accuracy
from benchmarks.goodput.bound import bound
from benchmarks.goodput.scenario import Kind, Scenario, at_load, requests_for, with_burst
from benchmarks.goodput.score import Score
from benchmarks.harness import print_machine, print_result, print_table
from controller.simulation.speed import PRESETS

LOADS = (0.7, 1.0, 1.5, 3.0)
BURST_LOAD = 0.7
SHOWN = (
    "curfew", "static_per_tenant", "static", "yesterday", "no_think", "unlimited", "clairvoyant", "bound",
)  # fmt: skip
COLOURS = {
    "no_think": "0.82",
    "unlimited": "0.66",
    "yesterday": "#a6cee3",
    "static": "#6aa5cf",
    "static_per_tenant": "#1f78b4",
    "curfew": "#d62728",
    "clairvoyant": "#f4a582",
}
PROMISED_SHARE = 0.9
DEMO_SLOTS = 16
PLOT = Path(__file__).parents[2] / "docs" / "goodput.png"


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario of one seed."""

    kind: Kind
    yesterday: Kind
    load: float | None
    seconds: float
    seed: int

    @property
    def name(self) -> str:
        """Of the scenario."""
        return "burst" if self.load is None else f"{self.load:.1f}"

    def scenario(self) -> Scenario:
        """What comes."""
        return _scenario(self.kind, self.load, self.seconds, self.seed)


@dataclass(frozen=True, slots=True)
class Plans:
    """A case's policies, as files' texts, and what the simulator says without running the system."""

    case: Case
    policies: Mapping[str, str]
    clairvoyant: float
    bound: float


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--simulate", action="store_true", help="a 9B model on an H200 instead of the real worker"
    )
    parser.add_argument(
        "--seconds", type=float, help="of each scenario (20, or 200 of the simulated worker's time)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--plot", type=Path, default=PLOT, help="(%(default)s)")
    options = parser.parse_args()
    print_machine()
    model = PRESETS["9b-h200"] if options.simulate else replace(PRESETS["demo"], slots=DEMO_SLOTS)
    kind = Kind("reasoning_evening", model, demo=not options.simulate)
    seconds = options.seconds or (200.0 if options.simulate else 20.0)
    yesterday = replace(kind, trace="reasoning_morning")
    cases = [
        Case(kind, yesterday, load, seconds, seed) for load in (*LOADS, None) for seed in range(options.seeds)
    ]
    console = Console(stderr=True)
    scores: dict[str, list[dict[str, Score | float]]] = {}
    with Progress(console=console) as progress, ProcessPoolExecutor() as pool:
        tuning = progress.add_task("tuning static budgets in the simulator", total=len(cases))
        plans = []
        for made in pool.map(plan, cases):
            plans.append(made)
            progress.advance(tuning)
        running = progress.add_task("running", total=len(cases) * len(plans[0].policies))
        for made in plans:
            came: dict[str, Score | float] = {"clairvoyant": made.clairvoyant, "bound": made.bound}
            for name, policy in made.policies.items():
                progress.update(running, description=f"load {made.case.name}, {name}")
                run = simulated.run if options.simulate else real.run
                came[name] = run(kind, made.case.scenario(), policy)
                progress.advance(running)
            # In hindsight, who tunes would have taken what turned out best of these.
            for name, special in (("static", ("no_think", "unlimited")), ("static_per_tenant", ("static",))):
                came[name] = max((came[name], *(came[other] for other in special)), key=_goodput)
            scores.setdefault(made.case.name, []).append(came)
    show(scores, options.plot)


def plan(case: Case) -> Plans:
    """Tunes what is tuned in hindsight, and yesterday's."""
    scenario = case.scenario()
    answer = simulated.answer_tokens(scenario)
    every = dict.fromkeys(scenario.deadlines_s, 0)
    one, _ = simulated.tune_one(case.kind, scenario)
    each, _ = simulated.tune_each(case.kind, scenario, one)
    before = _scenario(case.yesterday, case.load, case.seconds, case.seed)
    old_one, _ = simulated.tune_one(case.yesterday, before)
    old_each, _ = simulated.tune_each(case.yesterday, before, old_one)
    most = 2 * max(question.request.nature.reasoning_tokens for question in scenario.questions)
    policies = {
        "curfew": systems.curfew(scenario, measured_curve(before), most, answer),
        "static_per_tenant": systems.static(scenario, each, answer),
        "static": systems.static(scenario, dict.fromkeys(every, one), answer),
        "yesterday": systems.static(scenario, old_each, answer),
        "no_think": systems.static(scenario, every, answer),
        "unlimited": systems.static(scenario, dict.fromkeys(every, most), answer),
    }
    seer = simulated.run(case.kind, scenario, policies["curfew"], clairvoyant=True)
    return Plans(case, policies, seer.goodput, bound(case.kind, scenario))


def measured_curve(scenario: Scenario) -> list[tuple[int, float]]:
    """Accuracy by budget as it would have been measured on a scenario's questions."""
    accuracy = Accuracy.read()
    wanted = sorted(question.request.nature.reasoning_tokens for question in scenario.questions)
    levels = (0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 0.95, 0.999)
    budgets = {0, 1, wanted[len(wanted) // 10] // 2, *(wanted[int(level * len(wanted))] for level in levels)}
    return [
        (
            budget,
            round(
                fmean(
                    accuracy.at(q.numbers, min(1.0, budget / q.request.nature.reasoning_tokens))
                    for q in scenario.questions
                ),
                3,
            ),
        )
        for budget in sorted(budgets)
    ]


def show(scores: Mapping[str, Sequence[Mapping[str, Score | float]]], plot: Path) -> None:
    """Prints the tables and the JSON line, and draws the plot."""
    means = {
        load: {name: round(fmean(_goodput(came[name]) for came in seeds), 4) for name in SHOWN}
        for load, seeds in scores.items()
    }
    print_table(
        ["load", *SHOWN, "/ static per tenant", "/ yesterday"],
        (
            [
                load,
                *(row[name] for name in SHOWN),
                *(_ratio(row["curfew"], row[n]) for n in ("static_per_tenant", "yesterday")),
            ]
            for load, row in means.items()
        ),
    )
    curfews = [(load, came["curfew"]) for load, seeds in scores.items() for came in seeds]
    tenants = sorted({name for _, score in curfews if isinstance(score, Score) for name in score.attained})
    print_table(
        ["load", "promised", "kept", *(f"{name} in time" for name in tenants)],
        (
            [
                load,
                round(s.promised, 3),
                round(s.covered, 3),
                *(round(s.attained.get(t, 0.0), 3) for t in tenants),
            ]
            for load, s in curfews
            if isinstance(s, Score)
        ),
    )
    kept = [score for _, score in curfews if isinstance(score, Score)]
    gap = max(PROMISED_SHARE - share for score in kept for share in score.attained.values())
    print_result(
        {
            "score": means,
            "coverage_error_pp": round(100 * fmean(abs(s.covered - s.promised) for s in kept), 2),
            "worst_tenant_attainment_gap_pp": round(100 * max(0.0, gap), 2),
        }
    )
    draw(means, plot)


def draw(means: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A plot: goodput by load, a bar for each way of deciding."""
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    width = 0.8 / len(COLOURS)
    for index, (name, colour) in enumerate(COLOURS.items()):
        places = [place + (index - len(COLOURS) / 2 + 0.5) * width for place in range(len(means))]
        axes.bar(places, [100 * row[name] for row in means.values()], width, color=colour, label=name)
    for place, row in enumerate(means.values()):
        axes.hlines(100 * row["bound"], place - 0.42, place + 0.42, color="0.2", linewidth=1, linestyles=":")
    axes.set_xticks(range(len(means)), [load if load == "burst" else f"{load} ×" for load in means])
    axes.set_xlabel(
        "load: all the thinking that requests want, over what a full batch has (dotted: the bound)"
    )
    axes.set_ylabel("answered rightly in time, %")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, ncols=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _scenario(kind: Kind, load: float | None, seconds: float, seed: int) -> Scenario:
    usual = BURST_LOAD if load is None else load
    base = kind.base(requests_for(kind, usual, seconds, seed), seed)
    if load is None:
        return with_burst(at_load(kind, base, "burst", usual), seed)
    return at_load(kind, base, f"{load:.1f}", load)


def _goodput(score: Score | float) -> float:
    return score.goodput if isinstance(score, Score) else score


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f} ×" if theirs else "–"


if __name__ == "__main__":
    main()
