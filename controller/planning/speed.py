"""How fast a worker is: measured by itself at start, corrected by what its requests took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.planning.quantiles import Quantiles, SampleWindow

WINDOW = 256
MAX_AGE_S = 120.0
COLD_RATIO = 1.5
"""Until requests have shown otherwise, a worker may be this much slower than it measured itself with nothing
to do.
"""
COLD_EXTRA_WAIT_S = 0.010
"""The same for the wait: network, event loops, a step under way."""
COLD_SERVICE_TOKENS = 256
"""Output of a request, for the time after which a slot becomes free, until requests have shown it."""


@dataclass(frozen=True, slots=True)
class DecodeCurve:
    """Seconds of a decode step by the number of sequences in it, from measured points.

    Linear between the points and beyond the last; never falling, since a larger batch that measured faster
    was noise.
    """

    batch_sizes: tuple[int, ...]
    steps_s: tuple[float, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> DecodeCurve:
        """The curve through (batch size, seconds) points in any order; raises ValueError without a usable
        one.
        """
        ordered = sorted((size, seconds) for size, seconds in points if size >= 1 and seconds > 0)
        if not ordered:
            raise ValueError("no decode step was measured")
        slowest = 0.0
        steps: list[float] = []
        for _, seconds in ordered:
            slowest = max(slowest, seconds)
            steps.append(slowest)
        return cls(tuple(size for size, _ in ordered), tuple(steps))

    def step_s(self, batch_size: int) -> float:
        """Seconds of a step of so many sequences."""
        sizes, steps = self.batch_sizes, self.steps_s
        right = min(bisect_left(sizes, batch_size), len(sizes) - 1)
        if right == 0 or sizes[right] == batch_size:
            return steps[right]
        slope = (steps[right] - steps[right - 1]) / (sizes[right] - sizes[right - 1])
        return steps[right] + slope * (batch_size - sizes[right])


@dataclass(frozen=True, slots=True)
class Load:
    """What occupies a worker: sequences that run and wait, prompt tokens still to prefill, state slots that
    are free.
    """

    running: int
    waiting: int
    prefill_backlog_tokens: int
    free_slots: int


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """What a worker's speed is expected to be for a request sent now.

    wait_s: from receipt by the controller to the start of prefill, beside `extra_wait`. prefill_s_per_token
    and step_s: at the load of now. extra_wait: observed waits less expected ones, in seconds. prefill_ratio,
    step_ratio: observed times over expected ones.
    """

    wait_s: float
    prefill_s_per_token: float
    step_s: float
    extra_wait: Quantiles = field(default_factory=Quantiles)
    prefill_ratio: Quantiles = field(default_factory=Quantiles)
    step_ratio: Quantiles = field(default_factory=Quantiles)

    def prefill_s(self, prompt_tokens: int) -> float:
        """Expected time from the start of prefill to the first token: a step, and the prompt's own work in
        it.
        """
        return self.step_s + prompt_tokens * self.prefill_s_per_token


@dataclass(frozen=True, slots=True)
class Observation:
    """What a finished request shows of its worker.

    wait_s: everything before its prefill, and on the way there and back. prefill_s: from then to the first
    token. decode_s: from the first token to the end, in decode_steps steps. service_s: from prefill to the
    end.
    """

    prompt_tokens: int
    wait_s: float
    prefill_s: float
    decode_s: float
    decode_steps: int
    service_s: float


class SpeedModel:
    """Learns one worker's speed.

    What is learnt is the error of the worker's own measurements: as a ratio for prefill and steps, which fit
    then carries from one batch size to another, and as a difference for the wait, whose expectation may be
    almost nothing.
    """

    def __init__(self, decode: DecodeCurve, prefill_tokens_per_s: float, slots: int) -> None:
        self._decode = decode
        self._prefill_s_per_token = 1 / prefill_tokens_per_s
        self._slots = slots
        self._service_s = COLD_SERVICE_TOKENS * decode.step_s(slots)
        self._services_seen = 0
        self._extra_wait = SampleWindow(WINDOW, MAX_AGE_S)
        self._prefill_ratio = SampleWindow(WINDOW, MAX_AGE_S)
        self._step_ratio = SampleWindow(WINDOW, MAX_AGE_S)

    def wait_s(self, load: Load) -> float:
        """Expected wait of a request sent now: the step under way, prompts before it, and a slot when none is
        free.
        """
        wait = load.prefill_backlog_tokens * self._prefill_s_per_token
        if load.running > 0:
            wait += self._decode.step_s(load.running)
        if load.free_slots <= load.waiting:
            # Each of the slots becomes free once in a service time.
            wait += (load.waiting - load.free_slots + 1) * self._service_s / self._slots
        return wait

    def expected_start_s(self, load: Load) -> float:
        """Expected wait of a request sent now, and its first step."""
        return self.wait_s(load) + self._decode.step_s(self._batch_size(load))

    def _batch_size(self, load: Load) -> int:
        return min(load.running + load.waiting + 1, self._slots)

    def estimate(self, load: Load, now_s: float) -> SpeedEstimate:
        """What to expect of a request sent now."""
        return SpeedEstimate(
            self.wait_s(load),
            self._prefill_s_per_token,
            self._decode.step_s(self._batch_size(load)),
            self._extra_wait.table(now_s),
            self._prefill_ratio.table(now_s),
            self._step_ratio.table(now_s),
        )

    def learn(self, expected: SpeedEstimate, seen: Observation, now_s: float) -> None:
        """Compares what a request took with what was expected when it was sent.

        The step is compared with the one of the batch expected then: that others may join later is part of
        what is uncertain about it.
        """
        self._extra_wait.add(seen.wait_s - expected.wait_s, now_s)
        self._prefill_ratio.add(seen.prefill_s / expected.prefill_s(seen.prompt_tokens), now_s)
        if seen.decode_steps >= 4:  # fewer tell more about the clock than about the worker
            self._step_ratio.add(seen.decode_s / seen.decode_steps / expected.step_s, now_s)
        self._services_seen += 1
        self._service_s += (seen.service_s - self._service_s) / min(self._services_seen, 32)

    def learn_step(self, load: Load, step_s: float, now_s: float) -> None:
        """Takes the worker's own median of its last steps: news of a change before the first request ends."""
        if load.running > 0 and step_s > 0:
            self._step_ratio.add(step_s / self._decode.step_s(load.running), now_s)
