"""Measures the engine's speed before the worker becomes ready, which also warms it up: on a GPU, whatever a
step may launch is compiled when it is launched first, and no request should wait for that.
"""

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

_DECODE_TOKENS = 20
_SHORT_PROMPT_TOKENS = 16
_LONG_PROMPT_TOKENS = 512
_PREFILLS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured. decode_s: median seconds of a decode step, by sequences in it, fewest first.
    prefill_tokens_per_s: of one long prompt.
    """

    decode_s: dict[int, float]
    prefill_tokens_per_s: float


def measure(engine: Engine, chat: Chat, closing: Closing, clock: Callable[[], float]) -> Speed:
    """Decodes 1, 2, 4, … sequences together, up to the slots, and prefills long prompts. The engine must be
    idle, and is again afterwards.
    """
    longest = engine.settings.max_sequence_tokens // 2
    text = chat.encode("The quick brown fox jumps over the lazy dog. ")

    def submit(name: str, prompt_tokens: int, output_tokens: int, top_p: float) -> None:
        ids = (text * (prompt_tokens // len(text) + 1))[:prompt_tokens]
        limits = Limits(0, 0, output_tokens)
        sampling = Sampling(temperature=1.0, top_p=top_p)
        engine.submit(Request(name, Prompt(tuple(ids), 0), limits, closing, sampling, clock()))

    decode_s = {}
    sizes = [1]
    while sizes[-1] * 2 <= engine.settings.slots:
        sizes.append(sizes[-1] * 2)
    for size in sizes:
        for number in range(size):
            # Steps hold the dearer kind of sampling.
            prompt_tokens, output_tokens = min(_SHORT_PROMPT_TOKENS, longest), min(_DECODE_TOKENS, longest)
            submit(f"decode {number}", prompt_tokens, output_tokens, top_p=0.95)
        # None when the pages do not hold so many, or the first were done before the last had begun.
        if steps_s := _full_steps(engine, size, clock):
            decode_s[size] = median(steps_s)
    prompt_tokens = min(_LONG_PROMPT_TOKENS, longest)
    prefill_s = []
    for _ in range(_PREFILLS):
        submit("prefill", prompt_tokens, 1, top_p=1.0)
        began_s = clock()
        while not engine.idle:
            engine.step()
        prefill_s.append(clock() - began_s)
    return Speed(decode_s, prompt_tokens / median(prefill_s))


def _full_steps(engine: Engine, size: int, clock: Callable[[], float]) -> list[float]:
    """Steps until idle; the times of those steps in which `size` sequences decoded and nothing else ran."""
    times = []
    while not engine.idle:
        load = engine.load()
        full = load.running == size and not load.backlog_tokens
        began_s = clock()
        engine.step()
        if full:
            times.append(clock() - began_s)
    return times
