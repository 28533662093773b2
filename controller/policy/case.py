"""A request to try a policy on.

The decision is the planner's own, for a worker of which only the speed is known and a tenant that has shown
no answers yet: that of a controller that has just started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.planning.decision import Ask, Decision, Refusal
from controller.planning.lengths import LengthEstimate
from controller.planning.planner import Prospect
from controller.planning.speed import Load, SpeedEstimate, SpeedModel
from controller.policy.model import TenantPolicy
from controller.simulation.speed import WorkerModel

DEFAULT_INPUT_TOKENS = 300


@dataclass(frozen=True, slots=True)
class Case:
    """A request to explain. running: requests that a worker runs beside it; beyond its slots, they wait."""

    labels: Mapping[str, str]
    input_tokens: int
    running: int
    worker: WorkerModel

    def speed(self) -> SpeedEstimate:
        """What the request may expect of the worker."""
        worker = self.worker
        model = SpeedModel(worker.decode, worker.prefill_tokens_per_s, worker.slots)
        running = min(self.running, worker.slots)
        load = Load(running, self.running - running, 0, worker.slots - running)
        return model.estimate(load, self.input_tokens, now_s=0.0)

    def prospect(self, policy: TenantPolicy) -> Prospect:
        """How it may be served."""
        ask = Ask(prompt_tokens=self.input_tokens, most_prompt_tokens=self.input_tokens)
        return Prospect.of(ask, policy, LengthEstimate(), self.speed(), self.worker.max_sequence_tokens)

    def plan(self, policy: TenantPolicy) -> Decision | Refusal:
        """What the planner makes of it, on a pool where nobody else asks for more."""
        return self.prospect(policy).decide(price=0.0)
