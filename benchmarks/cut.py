"""What it costs to force the answer: `python -m benchmarks.cut`.

Ours: the engine feeds the closing text as a piece of the running sequence. The extra time is that of the step
which holds it, less that of a usual step.

Theirs: the client that NVIDIA publishes for thinking budgets. It lets a first request end at the budget, and
sends a second one with the whole prompt and the reasoning again as text, closed by `.\\n</think>\\n\\n`. The
extra time is from that text to the first token of the answer, less a usual step, which would have brought a
token too. It runs on the same engine, without what a network would add.

Long text in the user's turn is the usual case, and no cache of shared prompts can help there. Long text in
the system turn is the second request's best case: the engine then has a checkpoint of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

from benchmarks.harness import (
    arguments,
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
from worker.engine.events import Output, Started
from worker.engine.generation import Limits, Phase
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Prompt, Role, Turn

ANSWER_TOKENS = 8
FILLER = "The quick brown fox jumps over the lazy dog. "
THEIR_CLOSING = ".\n</think>\n\n"


class Place(Enum):
    """Where the prompt's long text stands; the value is its name in the table."""

    USER = "user"
    SYSTEM = "system, cached"


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of one request took and brought. text: of reasoning."""

    seconds: float
    phases: set[Phase]
    text: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Extra seconds of one cut, by either method, and what it computed twice."""

    ours_s: float
    theirs_s: float
    recomputed_tokens: int


class Bench:
    """An engine, and both ways to cut on it."""

    def __init__(self, model: Model, reasoning_tokens: int) -> None:
        self._chat, self._reasoning_tokens = model.chat, reasoning_tokens
        self._closing = Closing(model.chat.encode, model.chat.token_bytes)
        self._engine: Engine = make_engine(model, slots=1, checkpoints=1)

    def turns(self, place: Place, prompt_tokens: int) -> list[Turn]:
        """A conversation of about so many tokens, which ends with a question."""
        long = FILLER * (prompt_tokens // len(self._chat.encode(FILLER)))
        [question] = sums(1)
        if place is Place.SYSTEM:
            return [Turn(Role.SYSTEM, long), Turn(Role.USER, question)]
        return [Turn(Role.USER, f"{long}\n{question}")]

    def cut(self, turns: Sequence[Turn]) -> Cut:
        """Cuts a reasoning, and then as they do the same reasoning again.

        Raises RuntimeError where the model closes it before the cut.
        """
        tokens, closing = self._reasoning_tokens, self._closing
        limits = Limits(tokens, 0, tokens + closing.longest + ANSWER_TOKENS, ANSWER_TOKENS)
        steps = self._run(self._chat.prompt(turns, think=True), limits)
        forced = next((n for n, step in enumerate(steps) if Phase.FORCED in step.phases), None)
        if forced is None:
            raise RuntimeError(f"the model does not reason for {tokens} tokens: try fewer")
        first = next(n for n, step in enumerate(steps) if step.phases)
        closing_step = steps[forced + 1]
        usual_s = median(step.seconds for step in steps[first + 1 :] if step is not closing_step)

        reasoning = "".join(step.text for step in steps[: forced + 1])
        began_s = time.perf_counter()
        text = tuple(self._chat.encode(reasoning + THEIR_CLOSING))
        prompt = self._chat.prompt(turns, think=True)
        again = Prompt(prompt.ids + text, prompt.shared)
        their_steps = self._run(again, Limits(0, 0, 1))
        theirs_s = time.perf_counter() - began_s
        cached_tokens = sum(step.cached_tokens for step in their_steps)
        return Cut(
            ours_s=closing_step.seconds - usual_s,
            theirs_s=theirs_s - usual_s,
            recomputed_tokens=len(prompt.ids) + tokens - cached_tokens,
        )

    def _run(self, prompt: Prompt, limits: Limits) -> list[Step]:
        """Runs one request, greedily, to its end."""
        self._engine.submit(
            Request("request", prompt, limits, self._closing, Sampling(), received_s=time.monotonic())
        )
        steps: list[Step] = []
        while not self._engine.idle:
            began_s = time.perf_counter()
            events = self._engine.step()
            seconds = time.perf_counter() - began_s
            pieces = [piece for event in events if isinstance(event, Output) for piece in event.pieces]
            steps.append(
                Step(
                    seconds,
                    {piece.phase for piece in pieces},
                    "".join(piece.text for piece in pieces if piece.phase is Phase.REASONING),
                    sum(event.cached_tokens for event in events if isinstance(event, Started)),
                )
            )
        return steps


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        nargs="+",
        default=[500, 4000, 32000],
        metavar="N",
        help="prompts' lengths",
    )
    parser.add_argument("--reasoning", type=int, default=8, help="reasoning tokens before the cut")
    parser.add_argument("--rounds", type=int, default=5, help="cuts by each method for each prompt")
    args = parser.parse_args()
    bench = Bench(load(args.model), args.reasoning)
    cores = os.cpu_count() or 1
    rows, ratios = [], {}
    with threads(cores):
        for prompt_tokens in args.prompt_tokens:
            for place in Place:
                turns = bench.turns(place, prompt_tokens)
                # The second sighting of a system turn makes a checkpoint.
                bench.cut(turns)
                cuts = [bench.cut(turns) for _ in range(args.rounds)]
                ours_s, theirs_s = median(c.ours_s for c in cuts), median(c.theirs_s for c in cuts)
                ratio, again = ours_s / theirs_s, cuts[0].recomputed_tokens
                rows.append((prompt_tokens, place.value, 1000 * ours_s, 0, 1000 * theirs_s, again, ratio))
                if place is Place.USER:
                    ratios[f"{prompt_tokens}"] = round(ratio, 4)
    print_machine()
    print(f"extra milliseconds, and tokens computed twice; {args.rounds} rounds, {cores} threads")
    print_table(("prompt", "long text in", "ours", "again", "two requests", "again", "ratio"), rows)
    print_result({"extra_ms_ratio": ratios})


if __name__ == "__main__":
    main()
