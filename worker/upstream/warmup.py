"""Measures a server's speed with real requests before the worker becomes ready."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from statistics import median

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.upstream.client import Upstream, Usage
from worker.upstream.wish import WishReader

_DECODE_TOKENS = 24
_PREFILLS = 3
_MOST_TOGETHER = 8
_LONG_PROMPT_BYTES = 2048
_SENTENCE = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured. decode_s: median seconds between two tokens of a request, by requests that ran
    together, fewest first. bytes_per_token: of the long prompts.
    """

    decode_s: dict[int, float]
    prefill_tokens_per_s: float
    bytes_per_token: float


class WarmUp:
    """Asks the server as requests without thinking do."""

    def __init__(self, server: Upstream, reader: WishReader, clock: Callable[[], float]) -> None:
        self._server, self._reader, self._clock = server, reader, clock
        self._numbers = itertools.count()

    async def measure(self, slots: int, max_sequence_tokens: int) -> Speed:
        """Decodes 1, 2, 4, … requests together, up to the slots or 8, and prefills long prompts. Raises
        RpcError.
        """
        decode_s = {}
        size = 1
        while size <= min(slots, _MOST_TOGETHER):
            runs = await asyncio.gather(*(self._ask(_SENTENCE, _DECODE_TOKENS) for _ in range(size)))
            if steps_s := [step_s for step_s in (run.step_s for run in runs) if step_s is not None]:
                decode_s[size] = median(steps_s)
            size *= 2
        # A character may be a token.
        long_bytes = min(_LONG_PROMPT_BYTES, max_sequence_tokens // 2)
        prose = _SENTENCE * (long_bytes // len(_SENTENCE) + 1)
        prefills = [await self._ask(prose[:long_bytes], 1) for _ in range(_PREFILLS)]
        tokens = prefills[0].prompt_tokens or max(1, round(long_bytes / self._reader.bytes_per_token))
        first_s = median(run.first_s for run in prefills)
        if not decode_s:  # it never brought two pieces: its first is all that is known
            decode_s[1] = first_s
        return Speed(decode_s, tokens / first_s, long_bytes / tokens)

    async def _ask(self, text: str, tokens: int) -> _Timed:
        number = next(self._numbers)
        wish = self._reader.read(
            worker_pb2.WorkerServiceGenerateRequest(
                request_id=f"warm-up {number}",
                # What comes first differs, so that no cached prefix makes it look faster than it is.
                messages=[pb.Message(role=pb.ROLE_USER, content=f"{number}. {text}")],
                mode=pb.MODE_NO_THINK,
                budget=pb.Budget(answer_tokens=tokens),
                sampling=pb.SamplingParams(temperature=1.0),
            ),
            random_seed=number,
            now_s=0.0,
        )
        leg = wish.script.begin()
        usage: Usage | None = None
        begun_s = self._clock()
        times_s = []
        async with aclosing(self._server.stream(leg.path, leg.body)) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                if chunk.text or chunk.reasoning or chunk.finish:
                    times_s.append(self._clock())
        first_s = (times_s[0] if times_s else self._clock()) - begun_s
        return _Timed(max(first_s, 1e-6), _step_s(times_s, usage), usage.prompt_tokens if usage else None)


@dataclass(frozen=True, slots=True)
class _Timed:
    first_s: float
    step_s: float | None
    prompt_tokens: int | None


def _step_s(times_s: list[float], usage: Usage | None) -> float | None:
    """Seconds of a token after the first; None for fewer than two."""
    tokens = usage.output_tokens if usage is not None else len(times_s)
    if len(times_s) < 2 or tokens < 2:
        return None
    return max(1e-6, (times_s[-1] - times_s[0]) / (tokens - 1))
