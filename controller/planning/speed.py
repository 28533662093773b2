"""How fast a worker is: measured by itself at start, corrected by what its requests took."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.planning.options import Tariff
from controller.planning.quantiles import Quantiles, SampleStrata

WINDOW = 256
MAX_AGE_S = 120.0
COLD_RATIO = 1.5
"""Until requests have shown otherwise, a worker may be this much slower than usual, and than it measured
itself with nothing to do.
"""
START_SCALE_S = 0.020
"""Added to a prompt's own work before errors of the time to a first token are taken relative to it: what
network, event loops and schedulers cost does not depend on the prompt.
"""
LEAST_PACE_STEPS = 16
"""Fewer steps show no pace: what they took too long was one stall, which does not grow with the output."""
HALF_PACE_STEPS = 32
"""Steps of which the mean is taken half for the pace and half for such stalls (as an average of so many noisy
steps is best shrunk towards what is usual; Efron & Morris 1975).
"""
COLD_SERVICE_TOKENS = 256
"""Output of a request, for the time after which a slot becomes free, until requests have shown it."""


@dataclass(frozen=True, slots=True)
class DecodeCurve:
    """Seconds of a decode step by the number of sequences in it, from measured points.

    Linear between the points and beyond the last; never falling: a smaller batch that measured slower than a
    larger one was disturbed, since disturbance only adds time.
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
        fastest_yet = itertools.accumulate((seconds for _, seconds in reversed(ordered)), min)
        return cls(tuple(size for size, _ in ordered), tuple(fastest_yet)[::-1])

    def step_s(self, batch_size: float) -> float:
        """Seconds of a step of so many sequences, on average."""
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

    wait_s: from receipt by the controller to the start of prefill. prefill_s_per_token and step_s: at the
    load of now, with `batch_size` sequences. start_excess: errors of the expected time to the first token, as
    in `start_s`. step_ratio: observed times of a step over expected ones. slots: that the worker has.
    full_step_s: a step with all of them in use.
    """

    wait_s: float
    prefill_s_per_token: float
    step_s: float
    batch_size: int = 1
    start_excess: Quantiles = field(default_factory=Quantiles)
    step_ratio: Quantiles = field(default_factory=Quantiles)
    slots: int = 1
    full_step_s: float = 0.0

    def tariff(self, prompt_tokens: int) -> Tariff:
        """What a request takes of this worker."""
        return Tariff(prompt_tokens * self.prefill_s_per_token * self.slots, self.full_step_s or self.step_s)

    def prefill_s(self, prompt_tokens: int) -> float:
        """Expected time from the start of prefill to the first token: a step, and the prompt's own work in
        it.
        """
        return self.step_s + prompt_tokens * self.prefill_s_per_token

    def start_s(self, prompt_tokens: int, excess: float) -> float:
        """Receipt to first token, if it comes this many scales later than expected (earlier, below 0)."""
        expected_s = self.wait_s + self.prefill_s(prompt_tokens)
        return max(0.0, expected_s + excess * self._scale_s(prompt_tokens))

    def excess(self, prompt_tokens: int, start_s: float) -> float:
        """The inverse of `start_s`."""
        expected_s = self.wait_s + self.prefill_s(prompt_tokens)
        return (start_s - expected_s) / self._scale_s(prompt_tokens)

    def _scale_s(self, prompt_tokens: int) -> float:
        return START_SCALE_S + prompt_tokens * self.prefill_s_per_token


@dataclass(frozen=True, slots=True)
class Observation:
    """What a finished request shows of its worker.

    start_s: receipt by the controller to the first token. decode_s: from the first token to the end, in
    decode_steps steps of mean_batch_size sequences. service_s: from the start of prefill to the end.
    """

    prompt_tokens: int
    start_s: float
    decode_s: float
    decode_steps: int
    mean_batch_size: float
    service_s: float


class SpeedModel:
    """Learns one worker's speed.

    What is learnt is the error of the worker's own measurements: relative, so that it carries over to other
    loads, but kept apart by the prompt's length and by the batch, so that it need not where there are samples
    of the same kind.
    """

    def __init__(self, decode: DecodeCurve, prefill_tokens_per_s: float, slots: int) -> None:
        self._decode = decode
        self._prefill_s_per_token = 1 / prefill_tokens_per_s
        self._slots = slots
        self._service_s = COLD_SERVICE_TOKENS * decode.step_s(slots)
        self._services_seen = 0
        self._start_excess = SampleStrata(WINDOW, MAX_AGE_S)
        self._step_ratio = SampleStrata(WINDOW, MAX_AGE_S)
        self._last_running = 0

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

    @property
    def prefill_s_per_token(self) -> float:
        """As the worker measured it."""
        return self._prefill_s_per_token

    @property
    def lone_step_s(self) -> float:
        """A step of one sequence, as the worker measured it."""
        return self._decode.step_s(1)

    def measured_step_s(self, load: Load) -> float:
        """A step with a request that is sent now, as the worker measured it."""
        return self._decode.step_s(self._batch_size(load))

    def pace(self, now_s: float) -> float | None:
        """What steps take over what the worker measured; None before some were seen."""
        return self._step_ratio.overall(now_s).median

    def _batch_size(self, load: Load) -> int:
        return min(load.running + load.waiting + 1, self._slots)

    def estimate(self, load: Load, prompt_tokens: int, now_s: float) -> SpeedEstimate:
        """What to expect of a request of about so many prompt tokens sent now."""
        batch_size = self._batch_size(load)
        return SpeedEstimate(
            self.wait_s(load),
            self._prefill_s_per_token,
            self._decode.step_s(batch_size),
            batch_size,
            self._start_excess.table(_prompt_class(prompt_tokens), now_s),
            self._step_ratio.table(_batch_class(batch_size), now_s),
            self._slots,
            self._decode.step_s(self._slots) * _or_1(self._step_ratio.overall(now_s).median),
        )

    def idle_estimate(self, prompt_tokens: int, now_s: float) -> SpeedEstimate:
        """What to expect with nothing else to do."""
        return self.estimate(Load(0, 0, 0, self._slots), prompt_tokens, now_s)

    def learn(self, expected: SpeedEstimate, seen: Observation, now_s: float) -> None:
        """Compares what a request took with what was expected when it was sent.

        For requests sent into as large a batch, that others join and leave later is part of what is uncertain
        about a step. What carries over to other batches is the step against that of the batch it really had.
        """
        batch_s = self._decode.step_s(max(1.0, seen.mean_batch_size))
        median = self._step_ratio.overall(now_s).median
        step_s = batch_s * _or_1(median)
        steps = seen.decode_steps
        if steps >= LEAST_PACE_STEPS:
            trust = steps / (steps + HALF_PACE_STEPS) if median is not None else 1.0
            step_s += trust * (seen.decode_s / steps - step_s)
            batch_class = _batch_class(expected.batch_size)
            self._step_ratio.add(batch_class, step_s / expected.step_s, now_s, elsewhere=step_s / batch_s)
        # What the pace does not account for counts with the start: their sum is what the request took.
        start_s = seen.start_s + seen.decode_s - steps * step_s
        excess = expected.excess(seen.prompt_tokens, start_s)
        self._start_excess.add(_prompt_class(seen.prompt_tokens), excess, now_s)
        self._services_seen += 1
        self._service_s += (seen.service_s - self._service_s) / min(self._services_seen, 32)

    def learn_step(self, load: Load, step_s: float, now_s: float) -> None:
        """Takes the worker's own median of its last steps: news of a change before the first request ends.

        Those steps were of this load's batch only if it was so at the report before as well.
        """
        steady = load.running == self._last_running
        self._last_running = load.running
        if load.running > 0 and steady and step_s > 0:
            ratio = step_s / self._decode.step_s(load.running)
            self._step_ratio.add(_batch_class(load.running), ratio, now_s)


def _or_1(ratio: float | None) -> float:
    return 1.0 if ratio is None else ratio


def _batch_class(batch_size: int) -> int:
    """1; 2 and 3; 4 to 7; …"""
    return batch_size.bit_length()


def _prompt_class(prompt_tokens: int) -> int:
    """Up to 15 tokens; to 127; to 1023; …"""
    return max(0, prompt_tokens.bit_length() - 2) // 3
