"""How much reasoning do answer probes save, and at what accuracy? `python -m benchmarks.probes`

Asks the demo's held-out problems greedily through a real worker process: without a limit, with budgets, and
with probes by several rules. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import grpc

from benchmarks.harness import DEMO_MODEL, print_result, print_table
from curfew.processes import start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from demo.problems import Problem, held_out, is_right

if TYPE_CHECKING:
    from curfew.v1.worker_pb2_grpc import WorkerServiceAsyncStub

# More than the model ever reasons.
WHOLE = 192
GRACE, ANSWER = 12, 12
# Half of the worker's slots, so that each request finds room for its probe.
CONCURRENT = 8
SLOTS = 2 * CONCURRENT


@dataclass(frozen=True, slots=True)
class Way:
    """How reasoning is limited: by a budget, and by a rule of probes where `every` is not 0.

    first, every: reasoning tokens at the first checkpoint, and from one to the next. stable: equal answers
    that end the reasoning.
    """

    budget: int
    first: int = 0
    every: int = 0
    stable: int = 0

    def __str__(self) -> str:
        if self.every:
            return f"probes at {self.first}, then every {self.every}; {self.stable} equal"
        return "whole" if self.budget == WHOLE else f"budget {self.budget}"


# The budgets are the peer: what the same tokens are worth where nobody looks at answers.
WAYS = (
    *(Way(budget) for budget in (WHOLE, 32, 48, 64, 96)),
    *(Way(WHOLE, n, n, stable) for n, stable in ((8, 2), (16, 2), (24, 2), (8, 3), (16, 3), (8, 4))),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem's outcome. stopped: its answer was found stable."""

    right: bool
    stopped: bool
    reasoning_tokens: int
    probe_tokens: int
    skipped: int


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, metavar="DIR")
    parser.add_argument("--problems", type=int, default=150)
    options = parser.parse_args()
    outcomes = asyncio.run(measure(options.model, held_out(options.problems)))
    whole = outcomes[0]
    lines, results = [], []
    for way, answered in zip(WAYS, outcomes, strict=True):
        saved = 1 - tokens(answered) / tokens(whole)
        stopped = [a for a in answered if a.stopped]
        probe_tokens = mean(a.probe_tokens for a in answered)
        lines.append(
            [
                way,
                f"{share(answered):.1%}",
                tokens(answered),
                f"{saved:.1%}",
                len(stopped),
                f"{share(stopped):.1%}" if stopped else "",
                probe_tokens,
                sum(a.skipped for a in answered),
            ]
        )
        results.append(
            {
                "budget": way.budget,
                "rule": [way.first, way.every, way.stable] if way.every else None,
                "right": round(share(answered), 4),
                "reasoning_tokens": round(tokens(answered), 2),
                "probe_tokens": round(probe_tokens, 2),
            }
        )
    print(f"{len(whole)} held-out problems, greedy; tokens: means; right then: of the stopped")
    header = ("", "right", "reasoning", "saved", "stopped", "right then", "probe tokens", "skipped")
    print_table(header, lines)
    print_result(results)


def share(answered: Sequence[Answered]) -> float:
    """Of right answers."""
    return mean(a.right for a in answered)


def tokens(answered: Sequence[Answered]) -> float:
    """Mean reasoning tokens."""
    return mean(a.reasoning_tokens for a in answered)


async def measure(model: Path, problems: Sequence[Problem]) -> list[list[Answered]]:
    """Asks all problems in all ways."""
    room = asyncio.Semaphore(CONCURRENT)

    async def one(number: int, problem: Problem, way: Way) -> Answered:
        async with room:
            return await ask(stub, f"{way}-{number}", problem, way)

    arguments = ["--model", str(model), "--listen", "127.0.0.1:0", "--slots", str(SLOTS)]
    with TemporaryFile() as log:
        worker = await start_service("worker", arguments, log=log)
        try:
            async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
                stub = WorkerServiceStub(channel)
                return [
                    await asyncio.gather(*(one(n, problem, way) for n, problem in enumerate(problems)))
                    for way in WAYS
                ]
        finally:
            await worker.stop()


async def ask(stub: WorkerServiceAsyncStub, request_id: str, problem: Problem, way: Way) -> Answered:
    """Asks one problem."""
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=[pb.Message(role=pb.ROLE_USER, content=problem.question)],
        mode=pb.MODE_THINK,
        budget=pb.Budget(reasoning_tokens=way.budget, grace_tokens=GRACE, answer_tokens=ANSWER),
        sampling=pb.SamplingParams(temperature=0),
    )
    if way.every:
        request.probe.first_reasoning_tokens, request.probe.every_reasoning_tokens = way.first, way.every
        request.probe.stable_answers, request.probe.answer_tokens = way.stable, ANSWER
    answer, completion = "", worker_pb2.WorkerCompletion()
    async for response in stub.Generate(request):
        if response.delta.phase == pb.PHASE_ANSWER:
            answer += response.delta.text
        if response.HasField("completion"):
            completion = response.completion
    return Answered(
        right=is_right(problem, answer),
        stopped=completion.reasoning_end == pb.REASONING_END_STABLE,
        reasoning_tokens=completion.usage.reasoning_tokens,
        probe_tokens=completion.usage.probe_tokens,
        skipped=completion.skipped_probes,
    )


if __name__ == "__main__":
    main()
