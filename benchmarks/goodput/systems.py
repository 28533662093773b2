"""What is compared: ways of deciding how long each request may think, each as a policy file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from benchmarks.goodput.scenario import SHARE, Scenario
from controller.planning.lengths import LengthEstimate, LengthModel
from controller.planning.quantiles import Quantiles
from controller.planning.stops import StopCurve
from controller.policy import Policy, parse_policy
from controller.simulation.requests import Request

UNLIMITED = 10**6


def key(tenant: str) -> str:
    """A tenant's API key."""
    return f"goodput-{tenant}"


def static(scenario: Scenario, budgets: Mapping[str, int], answer_tokens: int) -> str:
    """Each tenant has one budget, whatever the deadline and the load; 0 does not think."""

    def tenant(name: str) -> str:
        budget = budgets[name]
        if budget == 0:
            return "mode: no_think"
        return f"mode: think, budget: {{min: {budget}, max: {budget}}}"

    defaults = f"otherwise: best_effort, brownout: none, budget: {{answer: {answer_tokens}, grace: 0}}"
    return _file(defaults, "", {name: tenant(name) for name in scenario.deadlines_s})


def curfew(scenario: Scenario, curve: list[tuple[int, float]], most: int, answer_tokens: int) -> str:
    """Each tenant has its deadline, and the rest follows."""
    points = ", ".join(f"[{budget}, {quality}]" for budget, quality in curve)
    budget = f"{{max: {most}, answer: {answer_tokens}, grace: 0}}"
    defaults = f"quality: {{curve: measured, learn: true}}, budget: {budget}"
    return _file(
        defaults,
        f"curves: {{measured: [{points}]}}\n",
        {
            name: f"objectives: {{deadline: {1000 * deadline_s:.0f}ms, share: {SHARE}}}"
            for name, deadline_s in scenario.deadlines_s.items()
        },
    )


def parsed(text: str) -> Policy:
    """The policy of a file's text."""
    return parse_policy(text, "policy.yaml", {})


def _file(defaults: str, head: str, tenants: Mapping[str, str]) -> str:
    digests = {name: hashlib.sha256(key(name).encode()).hexdigest() for name in tenants}
    lines = [
        f"  - {{name: {name}, keys: ['sha256:{digests[name]}'], {settings}}}\n"
        for name, settings in tenants.items()
    ]
    return f"apiVersion: curfew/v1\n{head}defaults: {{{defaults}}}\ntenants:\n{''.join(lines)}"


class KnownTokens(int):
    """Prompt tokens of a request of which more is known."""

    request: Request

    @classmethod
    def of(cls, request: Request) -> KnownTokens:
        """Those of a request."""
        known = cls(request.nature.prompt_tokens)
        known.request = request
        return known


class Clairvoyance(LengthModel):
    """Knows how long each request would think, and answer."""

    def estimate(self, now_s: float, prompt_tokens: int | None = None) -> LengthEstimate:
        """What will be."""
        if not isinstance(prompt_tokens, KnownTokens):
            return super().estimate(now_s, prompt_tokens)
        nature = prompt_tokens.request.nature
        stops = StopCurve.estimate([(nature.reasoning_tokens, True)] * 200)
        answers = Quantiles((float(nature.answer_tokens + 1),) * 200)
        return LengthEstimate(stops, answers, nature.answer_tokens + 1)
