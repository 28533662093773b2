"""A request to try a policy on.

The decision is the planner's own, for a worker of which only the speed is known and a tenant that has shown
no answers yet: that of a controller that has just started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import json_format

from controller.planning.decision import Ask, Decision, Refusal
from controller.planning.lengths import LengthEstimate
from controller.planning.planner import plan
from controller.planning.speed import DecodeCurve, SpeedEstimate
from controller.policy.model import TenantPolicy
from curfew.v1 import worker_pb2

DEFAULT_INPUT_TOKENS = 300


@dataclass(frozen=True, slots=True)
class WorkerSpeed:
    """A worker, as far as a plan depends on it. source: where the numbers are from, in words."""

    source: str
    decode: DecodeCurve
    prefill_tokens_per_s: float
    max_sequence_tokens: int

    @classmethod
    def from_description(cls, text: str, source: str) -> WorkerSpeed:
        """From what WorkerService.DescribeWorker answers, in protobuf's JSON. Raises ValueError."""
        try:
            message = json_format.Parse(text, worker_pb2.DescribeWorkerResponse(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise ValueError(f"not what DescribeWorker answers: {error}") from None
        points = [(p.batch_size, p.step.ToNanoseconds() * 1e-9) for p in message.speed.decode]
        if message.speed.prefill_tokens_per_s <= 0 or message.limits.max_sequence_tokens < 1:
            raise ValueError("speed.prefillTokensPerS and limits.maxSequenceTokens must be above 0")
        return cls(
            source,
            DecodeCurve.through(points),
            message.speed.prefill_tokens_per_s,
            message.limits.max_sequence_tokens,
        )

    def estimate(self, running: int) -> SpeedEstimate:
        """What a request may expect beside `running` others."""
        wait_s = self.decode.step_s(running) if running else 0.0
        return SpeedEstimate(wait_s, 1 / self.prefill_tokens_per_s, self.decode.step_s(running + 1))


TYPICAL = WorkerSpeed(
    "assumed: about a model of 9 billion parameters on one data-centre GPU",
    DecodeCurve.through([(1, 0.009), (16, 0.011), (64, 0.018), (128, 0.03)]),
    10_000.0,
    32_768,
)
"""A step reads 18 GB of bfloat16 weights at some 2 TB/s, a larger batch also its states; a prompt token takes
18 GFLOP, of which some 200 TFLOP/s are done.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A request to explain. running: requests that a worker runs beside it."""

    labels: Mapping[str, str]
    input_tokens: int
    running: int
    worker: WorkerSpeed

    def plan(self, policy: TenantPolicy) -> Decision | Refusal:
        """What the planner makes of it."""
        ask = Ask(prompt_tokens=self.input_tokens, most_prompt_tokens=self.input_tokens)
        speed = self.worker.estimate(self.running)
        return plan(ask, policy, LengthEstimate(), speed, self.worker.max_sequence_tokens)
