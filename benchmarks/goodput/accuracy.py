"""How often the demo model is right, by how hard a problem is and how far its reasoning came.

`python -m benchmarks.goodput.accuracy` asks the demo's held-out problems through a real worker, greedily,
with no reasoning, with every 32nd part of what they want and with all of it, cut there without grace as in
the policies that are compared, and writes the table that the simulated runs of `benchmarks.goodput` draw
their outcomes from, and that the curve which Curfew is given follows from. Parts are small, since an answer
becomes right at once, when the reasoning has all numbers together: a line between quarters promises what
they lack.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryFile

import grpc
from rich.progress import Progress

from benchmarks.budget_curve import Answered, ask
from benchmarks.replay import DEMO, reasoning_length
from curfew.processes import start_service
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from demo.problems import MAX_NUMBERS, MIN_NUMBERS, Problem, held_out

TABLE = Path(__file__).with_name("accuracy.json")
FRACTIONS = tuple(part / 32 for part in range(33))
ROOMY = 400
"""Tokens that end nobody's reasoning."""
GRACE = 0
"""Tokens, as in the policies that are compared: with 12, a budget of 12 brings what one of 24 does."""
CONCURRENT = 32


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Probability that an answer is right. by_numbers: from 2 numbers to 12, each at `FRACTIONS` of the
    reasoning that the problem wants.
    """

    by_numbers: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, path: Path = TABLE) -> Accuracy:
        """From the table as it was measured."""
        return cls(tuple(tuple(row) for row in json.loads(path.read_text())["accuracy"]))

    def at(self, numbers: int, fraction: float) -> float:
        """Of problems with so many numbers and such a part of their reasoning; linear between points."""
        row = self.by_numbers[numbers - MIN_NUMBERS]
        left = min(bisect_right(FRACTIONS, fraction), len(FRACTIONS) - 1) - 1
        part = (fraction - FRACTIONS[left]) / (FRACTIONS[left + 1] - FRACTIONS[left])
        return row[left] + min(1.0, part) * (row[left + 1] - row[left])


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=100, help="of each size (%(default)s)")
    options = parser.parse_args()
    by_numbers: dict[int, list[Problem]] = {size: [] for size in range(MIN_NUMBERS, MAX_NUMBERS + 1)}
    for problem in held_out(60 * options.problems):
        if len(by_numbers[len(problem.numbers)]) < options.problems:
            by_numbers[len(problem.numbers)].append(problem)
    rows = asyncio.run(_measure(list(by_numbers.values())))
    TABLE.write_text(json.dumps({"fractions": FRACTIONS, "accuracy": rows}) + "\n")
    for size, row in zip(by_numbers, rows, strict=True):
        print(f"{size:2} numbers  " + "  ".join(f"{100 * right:5.1f} %" for right in row))


async def _measure(problems: Sequence[Sequence[Problem]]) -> list[list[float]]:
    room = asyncio.Semaphore(CONCURRENT)

    async def one(name: str, problem: Problem, budget: int) -> Answered:
        async with room:
            answered = await ask(stub, name, problem, budget, GRACE)
        progress.advance(task)
        return answered

    with TemporaryFile() as log:
        arguments = ["--model", str(DEMO / "model"), "--listen", "127.0.0.1:0"]
        worker = await start_service("worker", arguments, log=log)
        try:
            async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
                stub = WorkerServiceStub(channel)
                with Progress(transient=True) as progress:
                    task = progress.add_task("problems", total=len(FRACTIONS) * sum(map(len, problems)))
                    rows = []
                    for index, group in enumerate(problems):
                        row = []
                        for fraction in FRACTIONS:
                            answered = await asyncio.gather(
                                *(
                                    one(f"{index}-{fraction}-{n}", problem, _budget(problem, fraction))
                                    for n, problem in enumerate(group)
                                )
                            )
                            row.append(round(mean(a.right for a in answered), 3))
                        rows.append(row)
                    return rows
        finally:
            await worker.stop()


def _budget(problem: Problem, fraction: float) -> int:
    return ROOMY if fraction == 1 else int(fraction * reasoning_length(problem))


if __name__ == "__main__":
    main()
