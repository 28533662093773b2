"""How does accuracy rise with the thinking budget? `python -m benchmarks.budget_curve`

Asks the demo's held-out problems greedily at eight budgets, through a real worker process, and counts on the
stream what no budget may exceed. Prints a table, writes the plot that the README shows, and ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import grpc
from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from curfew.processes import start_service
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from demo.problems import Problem, held_out, is_right

if TYPE_CHECKING:
    from curfew.v1.worker_pb2_grpc import WorkerServiceAsyncStub

ROOT = Path(__file__).parents[1]
BUDGETS = (0, 8, 16, 32, 48, 64, 96, 128)
GRACE = 12
ANSWER = 12
CONCURRENT = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem's outcome. cut: the budget ended its reasoning. overshoot: reasoning tokens on the stream
    beyond budget and grace.
    """

    right: bool
    empty: bool
    cut: bool
    reasoning_tokens: int
    overshoot: int


@dataclass(frozen=True, slots=True)
class Point:
    """All problems at one budget, in order."""

    budget: int
    answered: list[Answered]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return mean(a.right for a in self.answered)

    @property
    def mean_tokens(self) -> float:
        """Mean reasoning tokens used."""
        return mean(a.reasoning_tokens for a in self.answered)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "budget_curve.svg")
    options = parser.parse_args()
    console = Console()
    points = asyncio.run(measure(options.model, held_out(options.problems), console))
    console.print(table(points))
    lengths = [a.reasoning_tokens for a in points[-1].answered]
    cuts = quantiles(lengths, n=100)
    console.print(
        f"reasoning at the largest budget: {min(lengths)} to {max(lengths)} tokens,"
        f" p1 {cuts[0]:.0f}, median {cuts[49]:.0f}, p99 {cuts[98]:.0f}"
    )
    plot(points, options.plot)
    print(
        json.dumps(
            {
                "curve": [[p.budget, round(p.accuracy, 4), round(p.mean_tokens, 2)] for p in points],
                "overshoot_tokens": sum(a.overshoot for p in points for a in p.answered),
                "empty_answers": sum(a.empty for p in points for a in p.answered),
            }
        )
    )


async def measure(model: Path, problems: Sequence[Problem], console: Console) -> list[Point]:
    """Asks all problems at all budgets."""
    room = asyncio.Semaphore(CONCURRENT)

    async def one(number: int, problem: Problem, budget: int) -> Answered:
        async with room:
            answered = await ask(stub, f"{budget}-{number}", problem, budget)
        progress.advance(task)
        return answered

    with TemporaryFile() as log:
        worker = await start_service("worker", ["--model", str(model), "--listen", "127.0.0.1:0"], log=log)
        try:
            async with grpc.aio.insecure_channel(worker.addresses["listen"]) as channel:
                stub = WorkerServiceStub(channel)
                with Progress(console=console, transient=True) as progress:
                    task = progress.add_task("problems", total=len(problems) * len(BUDGETS))
                    points = []
                    for budget in BUDGETS:
                        asked = [one(number, problem, budget) for number, problem in enumerate(problems)]
                        points.append(Point(budget, await asyncio.gather(*asked)))
                    return points
        finally:
            await worker.stop()


async def ask(
    stub: WorkerServiceAsyncStub, request_id: str, problem: Problem, budget: int, grace_tokens: int = GRACE
) -> Answered:
    """Asks one problem, and counts reasoning tokens both on the stream and in the accounting."""
    grace = grace_tokens if budget else 0
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=[pb.Message(role=pb.ROLE_USER, content=problem.question)],
        mode=pb.MODE_THINK if budget else pb.MODE_NO_THINK,
        budget=pb.Budget(reasoning_tokens=budget, grace_tokens=grace, answer_tokens=ANSWER),
        sampling=pb.SamplingParams(temperature=0),
    )
    answer, streamed, reported, cut = "", 0, 0, False
    async for response in stub.Generate(request):
        if response.delta.phase == pb.PHASE_REASONING:
            streamed += len(response.delta.token_ids)
        elif response.delta.phase == pb.PHASE_ANSWER:
            answer += response.delta.text
        if response.HasField("completion"):
            reported = response.completion.usage.reasoning_tokens
            cut = response.completion.reasoning_end == pb.REASONING_END_BUDGET
    if streamed != reported:
        raise RuntimeError(f"{request_id}: {streamed} reasoning tokens on the stream, {reported} reported")
    overshoot = max(0, streamed - budget - grace)
    return Answered(is_right(problem, answer), not answer.strip(), cut, streamed, overshoot)


def table(points: Sequence[Point]) -> Table:
    """A row for each budget."""
    found = Table(
        title=f"{len(points[0].answered)} held-out problems, greedy, grace {GRACE}",
        caption="tokens: mean reasoning; right then: of the cut; no_think: the same problems without",
    )
    for heading in ("budget", "right", "tokens", "cut", "right then", "no_think", "empty"):
        found.add_column(heading, justify="right")
    for point in points:
        cut = [i for i, answered in enumerate(point.answered) if answered.cut]
        found.add_row(
            str(point.budget),
            f"{point.accuracy:.1%}",
            f"{point.mean_tokens:.1f}",
            str(len(cut)),
            _share(point.answered[i].right for i in cut),
            _share(points[0].answered[i].right for i in cut),
            str(sum(a.empty for a in point.answered)),
        )
    return found


def _share(right: Iterable[bool]) -> str:
    found = list(right)
    return f"{mean(found):.1%}" if found else "–"


def plot(points: Sequence[Point], path: Path) -> None:
    """Accuracy against the budget, and against what was used of it."""
    pyplot.rcParams["svg.hashsalt"] = "curfew"  # the same figures give the same file
    figure, axes = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    accuracies = [p.accuracy for p in points]
    axes.plot([p.budget for p in points], accuracies, "o-", color="#2563eb", label="budget granted")
    axes.plot([p.mean_tokens for p in points], accuracies, "s--", color="#16a34a", label="tokens used, mean")
    axes.axhline(accuracies[0], color="#9ca3af", linewidth=1, linestyle=":")
    axes.annotate("no_think", (points[-1].budget, accuracies[0]), ha="right", va="bottom", color="#6b7280")
    axes.set(xlabel="reasoning tokens", ylabel="right answers", ylim=(0, 1.03))
    axes.set_title("demo model: accuracy by thinking budget", loc="left")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
