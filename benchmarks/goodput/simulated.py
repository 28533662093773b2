"""Runs a way of deciding on a scenario in the simulator, and tunes static budgets in hindsight."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.goodput import systems
from benchmarks.goodput.accuracy import Accuracy
from benchmarks.goodput.scenario import Kind, Scenario, judge
from benchmarks.goodput.score import Came, Score
from controller.desk import Tenant, Tenants
from controller.simulation.requests import Request
from controller.simulation.trace import Outcome
from controller.simulation.world import Record, simulate

SEED = 11


class Clairvoyants(Tenants):
    """Tenants whose requests' lengths are known."""

    def __getitem__(self, name: str) -> Tenant:
        """The tenant of this name."""
        tenant = super().__getitem__(name)
        if not isinstance(tenant.lengths, systems.Clairvoyance):
            tenant.lengths = systems.Clairvoyance()
        return tenant


def run(kind: Kind, scenario: Scenario, policy: str, *, clairvoyant: bool = False) -> Score:
    """Runs one policy."""

    def prompt_of(request: Request) -> int:
        return systems.KnownTokens.of(request) if clairvoyant else request.nature.prompt_tokens

    outcome = simulate(
        systems.parsed(policy),
        [question.request for question in scenario.questions],
        kind.model,
        workers=1,
        judge=judge(Accuracy.read(), scenario.questions),
        seed=SEED,
        tenants=Clairvoyants() if clairvoyant else Tenants(),
        prompt_of=prompt_of,
        reports=True,
    )
    return score(scenario, outcome.records[scenario.scored_from :])


def score(scenario: Scenario, records: Sequence[Record]) -> Score:
    """Counts what was right, and in time."""
    return Score.of(
        Came(
            record.request.tenant,
            record.outcome is Outcome.ANSWERED,
            record.latency_s <= scenario.deadlines_s[record.request.tenant],
            record.chance,
            None
            if record.decision is None or record.decision.deadline_s is None
            else record.decision.promised_probability,
        )
        for record in records
    )


def budgets_to_try(kind: Kind, scenario: Scenario) -> list[int]:
    """Static budgets from none to what the longest want."""
    wanted = sorted(question.request.nature.reasoning_tokens for question in scenario.questions)
    levels = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97)
    return sorted({0, *(wanted[int(level * len(wanted))] for level in levels), systems.UNLIMITED})


def answer_tokens(scenario: Scenario) -> int:
    """Kept back for answers: enough for the longest."""
    return max(question.request.nature.answer_tokens for question in scenario.questions) + 2


def tune_one(kind: Kind, scenario: Scenario) -> tuple[int, Score]:
    """The best single budget for all tenants, in hindsight."""
    answer = answer_tokens(scenario)
    tried = {
        budget: run(
            kind, scenario, systems.static(scenario, dict.fromkeys(scenario.deadlines_s, budget), answer)
        )
        for budget in budgets_to_try(kind, scenario)
    }
    best = max(tried, key=lambda budget: tried[budget].goodput)
    return best, tried[best]


def tune_each(kind: Kind, scenario: Scenario, begin: int) -> tuple[dict[str, int], Score]:
    """The best budget for each tenant, in hindsight: one after another as long as any change is better."""
    answer, ladder = answer_tokens(scenario), budgets_to_try(kind, scenario)
    budgets = dict.fromkeys(scenario.deadlines_s, begin)
    best = run(kind, scenario, systems.static(scenario, budgets, answer))
    sizes = {name: sum(q.request.tenant == name for q in scenario.scored) for name in budgets}
    for _ in range(3):
        before = best.goodput
        for name in sorted(budgets, key=lambda tenant: -sizes[tenant]):
            at = ladder.index(budgets[name])
            for step in (-1, 1):
                index = at + step
                while 0 <= index < len(ladder):
                    changed = {**budgets, name: ladder[index]}
                    score_ = run(kind, scenario, systems.static(scenario, changed, answer))
                    if score_.goodput <= best.goodput:
                        break
                    budgets, best, index = changed, score_, index + step
        if best.goodput - before < 1e-3:
            break
    return budgets, best
