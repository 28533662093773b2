"""Measures the engine's speed before the worker becomes ready, which also warms it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from worker.engine.closing import Closing
from worker.engine.engine import Engine
from worker.engine.generation import Limits
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Chat, Prompt

_STEPS = 20
_PROMPT_TOKENS = 16
_PREFILL_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured. decode_s: median seconds of a step, by batch size. prefill_tokens_per_s: of one long
    prompt.
    """

    decode_s: dict[int, float]
    prefill_tokens_per_s: float


def measure(engine: Engine, chat: Chat, closing: Closing, clock: Callable[[], float]) -> Speed:
    """Decodes at batch sizes 1, 2, 4, … up to the slots, and prefills one long prompt. The engine must be
    idle.
    """
    sizes = [1]
    while sizes[-1] * 2 <= engine.settings.slots:
        sizes.append(sizes[-1] * 2)
    decode_s = {}
    for size in sizes:
        for number in range(size):
            engine.submit(_request(f"warm-up-{number}", _PROMPT_TOKENS, _STEPS, chat, closing, clock()))
        steps = _step_until_idle(engine, clock)
        # The first computes the prompts; without end of text in sight, the others decode the whole batch.
        decode_s[size] = median(steps[1:])
    tokens = min(_PREFILL_TOKENS, engine.settings.max_sequence_tokens // 2)
    prefill_s = []
    for _ in range(3):
        engine.submit(_request("warm-up", tokens, 1, chat, closing, clock()))
        prefill_s.append(sum(_step_until_idle(engine, clock)))
    return Speed(decode_s, tokens / median(prefill_s))


def _request(
    name: str, prompt_tokens: int, output_tokens: int, chat: Chat, closing: Closing, now_s: float
) -> Request:
    text = chat.encode("The quick brown fox jumps over the lazy dog. ")
    ids = (text * (prompt_tokens // len(text) + 1))[:prompt_tokens]
    limits = Limits(reasoning_tokens=0, grace_tokens=0, max_output_tokens=output_tokens, answer_tokens=1)
    # Drawn at a temperature, so that the measured step holds the dearer kind of sampling.
    sampling = Sampling(temperature=1.0, top_p=0.95)
    return Request(name, Prompt(tuple(ids), 0), limits, closing, sampling, now_s)


def _step_until_idle(engine: Engine, clock: Callable[[], float]) -> list[float]:
    times = []
    while not engine.idle:
        began_s = clock()
        engine.step()
        times.append(clock() - began_s)
    return times
