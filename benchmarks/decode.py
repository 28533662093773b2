"""How fast the engine decodes: `python -m benchmarks.decode`, against transformers on the same weights.

Both get the same prompts and generate the same number of tokens, greedily; the time is that of the whole,
prefill included. transformers runs them as static batches, of the size that suits it best; each side has the
number of threads that suits it best. Runs of both alternate; medians are reported.

The last figure is what a long prompt does to those that decode: the 99th percentile of a step's time while
it is prefilled, over the median without it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import torch
from transformers import NemotronHForCausalLM
from transformers import logging as transformers_logging

from benchmarks.harness import (
    arguments,
    fastest_threads,
    load,
    make_engine,
    print_machine,
    print_result,
    print_table,
    sums,
    threads,
)
from worker.engine.build import Model
from worker.engine.closing import Closing
from worker.engine.engine import Engine
from worker.engine.events import Output
from worker.engine.generation import Limits, Phase
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Prompt, Role, Turn

CONCURRENCY = (1, 8, 32)
DECODING_BESIDE = 8
WORDS = "The quick brown fox jumps over the lazy dog. "

Tokens = list[list[int]]
Run = Callable[[Sequence[Prompt]], Tokens]


class Ours:
    """The engine, as a worker runs it."""

    def __init__(self, model: Model, new_tokens: int, compiled: Path | None) -> None:
        self._new_tokens = new_tokens
        self._closing = Closing(model.chat.encode, model.chat.token_bytes)
        self.engine = make_engine(model, slots=max(CONCURRENCY), checkpoints=0, compiled=compiled)

    def submit(self, name: str, prompt: Prompt, tokens: int) -> None:
        """Queues a request for so many reasoning tokens."""
        limits = Limits(tokens, 0, tokens + self._closing.longest + 1)
        request = Request(name, prompt, limits, self._closing, Sampling(), time.monotonic())
        self.engine.submit(request)

    def __call__(self, prompts: Sequence[Prompt]) -> Tokens:
        """Generates for all prompts at once: fewer tokens where the model ends its reasoning earlier."""
        generated: dict[str, list[int]] = {f"{n}": [] for n in range(len(prompts))}
        for name, prompt in zip(generated, prompts, strict=True):
            self.submit(name, prompt, self._new_tokens + 1)
        while not self.engine.idle:
            for event in self.engine.step():
                if isinstance(event, Output):
                    for piece in event.pieces:
                        if piece.phase is Phase.REASONING:
                            generated[event.request_id] += piece.token_ids
                    if len(generated[event.request_id]) >= self._new_tokens:
                        self.engine.cancel(event.request_id)
        return list(generated.values())

    def lasting(self, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
        """The first `count` prompts after which the model reasons long enough.

        Raises RuntimeError where there are fewer.
        """
        lengths = map(len, self(prompts))
        found = [p for p, length in zip(prompts, lengths, strict=True) if length == self._new_tokens]
        if len(found) < count:
            raise RuntimeError(f"the model seldom reasons for {self._new_tokens} tokens: try fewer")
        return found[:count]


class Theirs:
    """transformers' NemotronHForCausalLM."""

    def __init__(self, args: argparse.Namespace) -> None:
        transformers_logging.set_verbosity_error()
        self._peer = NemotronHForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        self._new_tokens: int = args.tokens
        for layer in self._peer.model.layers:
            if hasattr(layer.mixer, "time_step_limit"):
                # To version 5.23 it clamps dt in prefill, but not in decode.
                layer.mixer.time_step_limit = (0.0, math.inf)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt]) -> Tokens:
        """Generates for all prompts, which are of one length, in one batch."""
        generated = self._peer.generate(
            torch.tensor([prompt.ids for prompt in prompts]),
            do_sample=False,
            max_new_tokens=self._new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: Tokens = generated[:, len(prompts[0].ids) :].tolist()
        return tokens


@dataclass
class Contender:
    """One side at one batch size, with the threads that suit it and the seconds of its runs."""

    run: Run
    prompts: Sequence[Prompt]
    threads: int
    seconds: list[float]
    tokens: Tokens

    @staticmethod
    def prepared(run: Run, prompts: Sequence[Prompt]) -> Contender:
        """Warms up, and finds the best number of threads."""
        tokens = run(prompts)

        def timed() -> float:
            began_s = time.perf_counter()
            run(prompts)
            return time.perf_counter() - began_s

        return Contender(run, prompts, fastest_threads(timed), [], tokens)

    def go(self) -> None:
        """Runs once more."""
        with threads(self.threads):
            began_s = time.perf_counter()
            self.run(self.prompts)
            self.seconds.append(time.perf_counter() - began_s)

    @property
    def tokens_per_s(self) -> float:
        """At the median."""
        return sum(map(len, self.tokens)) / median(self.seconds)


def steps_beside_a_long_prompt(
    ours: Ours, prompts: Sequence[Prompt], words: tuple[int, ...], new_tokens: int
) -> tuple[list[float], list[float]]:
    """Seconds of the steps of a decoding batch: those without, and those with a long prompt beside it."""
    engine, alone, beside = ours.engine, new_tokens // 4, new_tokens // 2
    length = beside * engine.settings.step_tokens
    for number, prompt in enumerate(prompts):
        ours.submit(f"{number}", prompt, new_tokens)
    engine.step()  # admits
    engine.step()
    without = [timed_step(engine) for _ in range(alone)]
    ours.submit("long", Prompt((words * (length // len(words) + 1))[:length], 0), 1)
    engine.step()  # admits
    during = [timed_step(engine) for _ in range(beside)]
    for name in ("long", *map(str, range(len(prompts)))):
        engine.cancel(name)
    return without, during


def started(model: Model, new_tokens: int, cache: Path | None) -> tuple[Ours, list[float]]:
    """Our side, and the seconds that an engine takes to start, for the first and for the second time."""
    seconds = []
    for _ in range(2):
        began_s = time.perf_counter()
        ours = Ours(model, new_tokens, cache)
        seconds.append(time.perf_counter() - began_s)
    return ours, seconds


def timed_step(engine: Engine) -> float:
    """Seconds of one step."""
    began_s = time.perf_counter()
    engine.step()
    return time.perf_counter() - began_s


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of each sequence")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side at each size")
    parser.add_argument("--compile", action="store_true", help="with a compiled decode step, made anew")
    args = parser.parse_args()
    model = load(args.model)
    with TemporaryDirectory() as cache:
        ours, start_s = started(model, args.tokens, Path(cache) if args.compile else None)
    theirs = Theirs(args)
    most = max(CONCURRENCY)
    questions = [model.chat.prompt([Turn(Role.USER, text)], think=True) for text in sums(4 * most)]
    prompts = ours.lasting(questions, most)
    contenders = {
        (side, size): Contender.prepared(run, prompts[:size])
        for size in CONCURRENCY
        for side, run in (("ours", ours), ("theirs", theirs))
    }
    step_threads = contenders["ours", DECODING_BESIDE].threads
    without: list[float] = []
    during: list[float] = []
    for _ in range(args.rounds):
        for contender in contenders.values():
            contender.go()
        with threads(step_threads):
            steps = steps_beside_a_long_prompt(
                ours, prompts[:DECODING_BESIDE], tuple(model.chat.encode(WORDS)), args.tokens
            )
        without += steps[0]
        during += steps[1]

    print_machine()
    print(
        f"{model.name}: {args.tokens} new tokens after {len(prompts[0].ids)} of prompt, {args.rounds} rounds"
    )
    rows, tokens_per_s, ratio = [], {}, {}
    for size in CONCURRENCY:
        own = contenders["ours", size]
        # A client with many requests may also run them as several smaller batches.
        best = max(
            (contenders["theirs", batch] for batch in CONCURRENCY if batch <= size),
            key=lambda contender: contender.tokens_per_s,
        )
        tokens_per_s[f"{size}"] = round(own.tokens_per_s)
        ratio[f"{size}"] = round(own.tokens_per_s / best.tokens_per_s, 2)
        rows.append(
            (size, own.tokens_per_s, own.threads, best.tokens_per_s, len(best.prompts), best.threads,
             own.tokens_per_s / best.tokens_per_s, agreement(own, contenders["theirs", size]))
        )  # fmt: skip
    print_table(
        ("sequences", "tokens/s", "threads", "transformers", "batch", "threads", "ratio", "same tokens"), rows
    )
    usual_s, worst_s = median(without), quantiles(during, n=100)[98]
    print(f"an engine starts in {start_s[0]:.2f} s for the first time, then in {start_s[1]:.2f} s")
    print(
        f"step of {DECODING_BESIDE} decodes: median {1000 * usual_s:.2f} ms; while a prompt is prefilled in "
        f"pieces of {ours.engine.settings.step_tokens}: median {1000 * median(during):.2f} ms, "
        f"p99 {1000 * worst_s:.2f} ms"
    )
    print_result(
        {
            "tokens_per_s": tokens_per_s,
            "ratio_to_transformers": ratio,
            "p99_over_p50_step_with_long_prefill": round(worst_s / usual_s, 2),
            "engine_start_s": {"first": round(start_s[0], 2), "second": round(start_s[1], 2)},
        }
    )


def agreement(one: Contender, other: Contender) -> str:
    """How many of the sequences got the same tokens from both."""
    same = sum(a == b for a, b in zip(one.tokens, other.tokens, strict=True))
    return f"{same}/{len(one.tokens)}"


if __name__ == "__main__":
    main()
