"""What long prompts cost: `python -m benchmarks.context`.

For prompts from 1k to 128k tokens (long text, then a question): the time to the first token, the time of a
decode step behind the prompt, and memory: the pages of the attention layers, which must grow with the prompt,
and by how much the process grows beside them while it is computed. Each prompt is computed twice, in pieces
of different size; the tokens that follow must be the same.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

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
from worker.engine.events import Output
from worker.engine.generation import Limits
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Prompt, Role, Turn
from worker.model.pools import Pools

TEXT = "The quick brown fox jumps over the lazy dog. "
NEW_TOKENS = 12
PIECES = (512, 2048)
PAGE_TOKENS = 32
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt. growth_mib: of the process at its peak, beside the pools."""

    first_token_s: float
    step_s: float
    growth_mib: float
    tokens: tuple[int, ...]


def run(model: Model, prompt_tokens: int, piece_tokens: int) -> Run:
    """Computes a prompt in pieces, and generates a few tokens behind it."""
    engine = make_engine(
        model,
        slots=1,
        checkpoints=0,
        page_tokens=PAGE_TOKENS,
        idle_step_tokens=piece_tokens,
        max_sequence_tokens=prompt_tokens + 2 * NEW_TOKENS,
    )
    chat = model.chat
    [question] = sums(1)
    end = chat.prompt([Turn(Role.USER, question)], think=True).ids
    words, filled = tuple(chat.encode(TEXT)), prompt_tokens - len(end)
    prompt = Prompt((words * (filled // len(words) + 1))[:filled] + end, 0)
    closing = Closing(chat.encode, chat.token_bytes)
    limits = Limits(NEW_TOKENS, 0, NEW_TOKENS + closing.longest + 1)
    before_mib = resident_mib()
    began_s = time.perf_counter()
    engine.submit(Request("request", prompt, limits, closing, Sampling(), received_s=time.monotonic()))
    tokens: list[int] = []
    token_times_s: list[float] = []
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Output):
                token_times_s.append(time.perf_counter() - began_s)
                tokens += [token for piece in event.pieces for token in piece.token_ids]
    return Run(
        first_token_s=token_times_s[0],
        step_s=median(later - earlier for earlier, later in pairwise(token_times_s)),
        growth_mib=peak_mib() - before_mib,
        tokens=tuple(tokens),
    )


def page_mib(model: Model, tokens: int) -> float:
    """Memory of the pages that so many tokens need."""
    one = Pools.allocate(
        model.config,
        slots=1,
        pages=1,
        page_tokens=PAGE_TOKENS,
        dtype=model.network.dtype,
        device=model.network.device,
    )
    return -(-tokens // PAGE_TOKENS) * one.page_bytes / MIB


def resident_mib() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_mib() -> float:
    """The most that this process ever had (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        nargs="+",
        default=[1024, 4096, 16384, 65536, 131072],
        metavar="N",
        help="prompts' lengths, shortest first",
    )
    args = parser.parse_args()
    model = load(args.model)
    count = fastest_threads(lambda: run(model, min(args.prompt_tokens), min(PIECES)).first_token_s)
    runs: dict[int, Run] = {}
    rows = []
    with threads(count):
        for tokens in args.prompt_tokens:
            one, other = (run(model, tokens, piece) for piece in PIECES)
            runs[tokens] = one
            rows.append(
                (tokens, one.first_token_s, 1e6 * one.first_token_s / tokens, 1000 * one.step_s,
                 page_mib(model, tokens), one.growth_mib, "yes" if one.tokens == other.tokens else "no")
            )  # fmt: skip
    print_machine()
    print(f"prompts in pieces of {PIECES[0]} tokens, and of {PIECES[1]}; {count} threads")
    print_table(
        ("prompt", "first token s", "µs/token", "step ms", "pages MiB", "growth MiB", "same tokens"), rows
    )
    print_result(
        {
            "first_token_s": {f"{tokens}": round(r.first_token_s, 3) for tokens, r in runs.items()},
            "page_mib": {f"{tokens}": round(page_mib(model, tokens), 1) for tokens in runs},
            "growth_mib": {f"{tokens}": round(r.growth_mib, 1) for tokens, r in runs.items()},
            "same_tokens": all(row[-1] == "yes" for row in rows),
        }
    )


if __name__ == "__main__":
    main()
