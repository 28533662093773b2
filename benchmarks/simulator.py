"""Does the simulator tell the truth? `python -m benchmarks.simulator`

Measures a real worker, records its steps under a little other traffic, has the real system (a controller and
a worker, as processes) serve a piece of a trace, and has the simulator serve the same arrivals. Shown are the
latencies that callers saw against those predicted. The worker takes 8 ms for a step, as in the demo, so that
what is measured is the system and not what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryFile

from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import print_machine, print_result, print_table
from benchmarks.replay import DEMO, Item, Reply, items_of, reasoning_length, replay, serving
from controller.policy import Policy, load_policy
from controller.simulation.judge import judge_of
from controller.simulation.mapping import Share
from controller.simulation.recording import record_speed
from controller.simulation.requests import prepare
from controller.simulation.speed import WorkerModel, parse_speed
from controller.simulation.summary import quantile
from controller.simulation.trace import Arrival, Trace, read_trace
from controller.simulation.world import Record, simulate
from curfew.processes import start_service
from curfew.rpc.durations import seconds
from curfew.v1 import reasoning_pb2

TRACE = Path(__file__).parent / "traces" / "reasoning_evening.csv"
LENGTH_SCALE = 0.1
"""From the trace's tokens to those in which the demo reasons."""
SHARES = Share.parse("*=support:3,analyst:2,autocomplete:1")
SEEDS = range(5)
"""Of the simulations, of which the median is taken: the real system has one luck, too."""
LINE_TOKENS = 11
"""Of the demo's reasoning: a cut waits for the end of a line, half of it on average."""
CHUNK_TOKENS = 32
"""Of the demo model's scan."""
OTHER_TRACE, OTHER_SECONDS = TRACE.with_name("reasoning_morning.csv"), 15.0
"""Traffic under which the worker's steps are recorded: not that which is then predicted."""
LEAST_STEPS = 8
"""Of a request that shows a pace."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=50.0, help="of load (%(default)s)")
    parser.add_argument("--rate", type=float, default=11.0, help="requests a second (%(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="of the worker (%(default)s)")
    parser.add_argument("--least-step-ms", type=float, default=8.0, help="of the worker (%(default)s)")
    parser.add_argument("--policy", type=Path, default=DEMO / "policy.yaml", help="of the demo's tenants")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    options = parser.parse_args()
    print_machine()
    trace = piece(read_trace(TRACE), options.seconds, options.rate)
    items = items_of(trace, lambda tenant, number: SHARES.tenant(number), options.seed)
    model, replies = asyncio.run(measure(options, items))
    policy = load_policy(options.policy, None)
    runs = [predict(policy, model, items, seed) for seed in SEEDS]
    late_s = max(reply.sent_s - reply.item.arrival_s for reply in replies)
    print(f"{len(items)} requests in {options.seconds:g} s; sent up to {late_s * 1e3:.0f} ms late")
    tenants = list(policy.tenants)
    header = ["", "requests", "p50 real s", "predicted", "p95 real s", "predicted", "kept real", "predicted"]
    header += ["right real", "predicted", "thought real", "predicted"]
    rows = {name: row(name, replies, runs) for name in [*tenants, "all"]}
    print_table(header, ([name, *values] for name, values in rows.items()))
    p50_real, p50, p95_real, p95 = rows["all"][1:5]
    print_result(
        {
            "p50_predicted_over_real": round(p50 / p50_real, 4),
            "p95_predicted_over_real": round(p95 / p95_real, 4),
            "by_tenant_p95_predicted_over_real": {
                name: round(rows[name][4] / rows[name][3], 4) for name in tenants if rows[name][0]
            },
        }
    )


def piece(trace: Trace, seconds: float, rate: float) -> Trace:
    """So many seconds at so many requests a second from the trace's beginning, at its own burstiness."""
    count = round(seconds * rate)
    end_s = trace.arrivals[min(count, len(trace.arrivals) - 1)].arrival_s
    return trace.between(0, end_s).scaled(time=seconds / end_s, lengths=LENGTH_SCALE)


async def measure(options: argparse.Namespace, items: Sequence[Item]) -> tuple[WorkerModel, list[Reply]]:
    """Measures the worker, then the system's replies."""
    console = Console(stderr=True)
    arguments = ["--slots", str(options.slots)]
    paced = [*arguments, "--least-step-ms", str(options.least_step_ms)]
    keys = {tenant: f"demo-{tenant}" for tenant in SHARES.tenants}
    other = items_of(
        piece(read_trace(OTHER_TRACE), OTHER_SECONDS, options.rate),
        lambda _, n: SHARES.tenant(n),
        options.seed,
    )
    with TemporaryFile() as log:
        with console.status("measuring a worker …"):
            # What its steps take by themselves, beside which the least time is known.
            bare = await start_service(
                "worker", ["--model", str(DEMO / "model"), "--listen", "127.0.0.1:0", *arguments], log=log
            )
            try:
                fast = parse_speed(await record_speed(bare.addresses["listen"]), "measured")
            finally:
                await bare.stop()
        with console.status("recording its steps under other traffic …"):
            async with serving(options.policy, worker_arguments=paced, log=log) as (address, _):
                recorded = [r.completion for r in await replay(address, keys, other)]
        # A fresh one: a controller learns, and the simulated one begins without knowledge too.
        async with serving(options.policy, worker_arguments=paced, log=log) as (address, _):
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("replaying", total=len(items))
                replies = await replay(
                    address, keys, items, progress=lambda done: progress.update(task, completed=done)
                )
    least_s = options.least_step_ms / 1e3
    done = [completion for completion in recorded if completion is not None]
    engine = replace(
        fast.engine,
        least_step_s=least_s,
        boundary_tokens=LINE_TOKENS / 2,
        chunk_tokens=CHUNK_TOKENS,
        relay_s=median(seconds(c.latency) - seconds(c.timings.total) for c in done),
        step_ratios=tuple(
            pace_s(c) / max(least_s, fast.decode.step_s(c.timings.mean_batch_size))
            for c in done
            if c.timings.decode_steps > LEAST_STEPS
        ),
    )
    return replace(fast, engine=engine), replies


def pace_s(completion: reasoning_pb2.Completion) -> float:
    """Mean time of a step between the first token and the end, by the worker's account."""
    timings = completion.timings
    return (seconds(timings.total) - seconds(timings.first_token)) / (timings.decode_steps - 1)


def predict(policy: Policy, model: WorkerModel, items: Sequence[Item], seed: int) -> list[Record]:
    """What the simulator makes of the same arrivals."""
    arrivals = tuple(
        Arrival(
            item.arrival_s,
            item.tenant,
            len(item.problem.question),
            reasoning_length(item.problem),
            len(item.problem.answer),
        )
        for item in items
    )
    requests = prepare(
        Trace("replayed", arrivals), lambda arrival, _: arrival.tenant, seed, model.engine.boundary_tokens
    )
    judge = judge_of([policy], requests)
    return simulate(policy, requests, model, workers=1, judge=judge, seed=seed).records


def row(tenant: str, replies: Sequence[Reply], runs: Sequence[Sequence[Record]]) -> list[float]:
    """Requests, then pairs of real and predicted: p50, p95, kept, right, reasoning tokens."""
    real = [reply for reply in replies if tenant in (reply.item.tenant, "all")]
    if not real:
        return [0, *[math.nan] * 10]
    answered = [reply for reply in real if reply.completion is not None]
    simulated = [[r for r in run if tenant in (r.request.tenant, "all")] for run in runs]
    done = [[r for r in records if r.done is not None] for records in simulated]
    times = sorted(reply.latency_s for reply in answered)
    predicted = [sorted(r.latency_s for r in records) for records in done]
    return [
        len(real),
        quantile(times, 0.5),
        median(quantile(latencies, 0.5) for latencies in predicted),
        quantile(times, 0.95),
        median(quantile(latencies, 0.95) for latencies in predicted),
        fmean(reply.kept for reply in real),
        median(fmean(r.kept for r in records) for records in simulated),
        fmean(reply.right for reply in answered),
        median(fmean(r.chance for r in records) for records in done),
        fmean(reply.reasoning_tokens for reply in answered),
        median(fmean(r.done.reasoning_tokens for r in records if r.done) for records in done),
    ]


if __name__ == "__main__":
    main()
