"""How long does a decision take? `python -m benchmarks.planner`

One core decides for a thousand tenants over 64 workers: the very desk that serves, with everything that a
decision consists of (choice of the worker, its speed, the tenant's lengths and learnt quality, calibration,
price, queue, plan, its reason in words). Requests come and end on a clock of their own, so what is in flight,
waits and is learnt is what it would be at this load; only the computation is timed, with the pauses of the
garbage collector. Learning happens as requests end and has columns of its own.

Above a load of 1 some wait and are decided when a place becomes free; the time of an end then holds their
decisions too.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from benchmarks.harness import print_result, print_table
from controller import wire
from controller.desk import Desk, Done, Flight, Tenants
from controller.desk.desk import spread_evenly
from controller.fleet import Roster, Worker
from controller.planning.decision import Ask, Mode, Refusal
from controller.planning.outcomes import Ended, Trial
from controller.policy import Policy, TenantPolicy, parse_policy
from curfew.rpc.collector import calm_collector
from curfew.v1 import worker_pb2

SLOTS = 64
STEP_S = 0.02
PREFILL_TOKENS_PER_S = 20_000.0
MAX_SEQUENCE_TOKENS = 32_768
CURVE = "[[0, 0.39], [64, 0.5], [128, 0.61], [256, 0.78], [512, 0.92], [1024, 0.97]]"
SEEN_REQUESTS = 128
"""What each tenant has shown before."""
SEEN_REPORTS = 100


def the_policy(tenants: int) -> Policy:
    """Deadlines from tight to none, with and without a curve, learnt and not."""
    lines = ["apiVersion: curfew/v1", f"curves: {{usual: {CURVE}}}", "tenants:"]
    objectives = ("deadline: 4s", "deadline: 10s, share: p90", "deadline: 30s, first_token: 2s", "share: p95")
    qualities = ("curve: usual", "curve: usual, learn: true", "curve: usual, floor: 0.6", "learn: true")
    for number in range(tenants):
        lines += [
            f"  - name: tenant-{number}",
            f"    objectives: {{{objectives[number % 4]}}}",
            f"    quality: {{{qualities[number // 4 % 4]}}}",
            f"    weight: {1 + number % 3}",
            f"    otherwise: {'refuse' if number % 2 else 'best_effort'}",
        ]
    return parse_policy("\n".join(lines), "benchmark", None)


def described_worker(number: int) -> Worker:
    """A worker that has said what it can do."""
    worker = Worker(f"worker-{number}:7210")
    worker.healthy = True
    decode = [(1, 0.4 * STEP_S), (SLOTS // 4, 0.6 * STEP_S), (SLOTS, STEP_S)]
    worker.take_description(
        worker_pb2.DescribeWorkerResponse(
            model="benchmark",
            limits=worker_pb2.WorkerLimits(max_sequence_tokens=MAX_SEQUENCE_TOKENS, slots=SLOTS),
            speed=worker_pb2.WorkerSpeed(
                decode=[worker_pb2.DecodeSpeed(batch_size=b, step=wire.duration(s)) for b, s in decode],
                prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
            ),
            load=worker_pb2.WorkerLoad(free_slots=SLOTS),
            bytes_per_token=4.0,
        ),
        now_s=0.0,
    )
    return worker


@dataclass(frozen=True, slots=True)
class Job:
    """What a request asks, and how long its reasoning and answer get by themselves."""

    ask: Ask
    natural_tokens: int
    answer_tokens: int

    @classmethod
    def draw(cls, rng: Random) -> Job:
        """Longer prompts are reasoned about longer."""
        prompt = round(rng.lognormvariate(5.5, 1.0)) + 10
        natural = round(0.8 * prompt * rng.lognormvariate(0.0, 0.4)) + 5
        return cls(Ask(prompt, round(1.25 * prompt)), natural, rng.randrange(5, 60))


@dataclass
class Times:
    """Seconds that calls took. decisions: made in the arrivals and ends together."""

    arrivals_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    decisions: int = 0
    refused: int = 0


class Bench:
    """A pool, its tenants, and requests that come and end on a clock of their own."""

    def __init__(self, tenants: int, workers: int, seed: int) -> None:
        self._rng = Random(seed)
        self._policies = list(the_policy(tenants).tenants.values())
        self._roster = Roster([described_worker(number) for number in range(workers)])
        self._desk = Desk(self._roster, Tenants(), spread_evenly())
        self._ends: list[tuple[float, int, Flight, Job]] = []
        self._waiting: dict[object, Job] = {}
        self._count = itertools.count()
        self._now_s = 0.0
        for policy in self._policies:
            self._show(policy)

    def run(self, requests: int, rate_per_s: float) -> Times:
        """Has so many requests come, at random moments."""
        times, rng = Times(), self._rng
        for _ in range(requests):
            arrival_s = self._now_s + rng.expovariate(rate_per_s)
            while self._ends and self._ends[0][0] <= arrival_s:
                self._end(times)
            self._now_s = arrival_s
            policy, job = rng.choice(self._policies), Job.draw(rng)
            began_s = time.thread_time()
            ticket = self._desk.arrive(job.ask, policy, arrival_s)
            verdicts = self._desk.decide(arrival_s)
            times.arrivals_s.append(time.thread_time() - began_s)
            if isinstance(ticket, Refusal):
                times.decisions += 1
                times.refused += 1
            else:
                self._waiting[ticket] = job
            self._take(verdicts, times)
        return times

    def _end(self, times: Times) -> None:
        self._now_s, _, flight, job = heapq.heappop(self._ends)
        decision, total_s = flight.decision, self._now_s - flight.placement.receipt_s
        cut = decision.budget_tokens + decision.grace_tokens
        reasoning = min(job.natural_tokens, cut) if decision.mode is Mode.THINK else 0
        output = reasoning + job.answer_tokens
        first_s = job.ask.prompt_tokens / PREFILL_TOKENS_PER_S + STEP_S
        done = Done(
            prompt_tokens=job.ask.prompt_tokens,
            output_tokens=output,
            reasoning_tokens=reasoning,
            answer_tokens=job.answer_tokens,
            stopped=job.natural_tokens <= cut if decision.mode is Mode.THINK else None,
            queue_s=0.0,
            first_token_s=first_s,
            total_s=total_s,
            decode_steps=output,
            mean_batch_size=SLOTS / 2,
        )
        began_s = time.thread_time()
        flight.end(done, self._now_s)
        verdicts = self._desk.decide(self._now_s)
        times.ends_s.append(time.thread_time() - began_s)
        self._take(verdicts, times)

    def _take(self, verdicts: Sequence[tuple[object, Flight | Refusal]], times: Times) -> None:
        for ticket, verdict in verdicts:
            job = self._waiting.pop(ticket)
            times.decisions += 1
            if isinstance(verdict, Refusal):
                times.refused += 1
                continue
            verdict.start(job.ask.prompt_tokens)
            budget = verdict.decision.budget_tokens
            output = min(job.natural_tokens, budget) + job.answer_tokens
            service_s = job.ask.prompt_tokens / PREFILL_TOKENS_PER_S + output * STEP_S
            when_s = self._now_s + service_s * self._rng.lognormvariate(0.0, 0.1)
            heapq.heappush(self._ends, (when_s, next(self._count), verdict, job))

    def _show(self, policy: TenantPolicy) -> None:
        """What a tenant's requests showed before."""
        known, rng = self._desk.tenants[policy.name], self._rng
        for number in range(SEEN_REQUESTS):
            job = Job.draw(rng)
            cut, prompt = rng.choice((64, 256, 1024)), job.ask.prompt_tokens
            stopped = job.natural_tokens <= cut
            known.lengths.learn_reasoning(min(cut, job.natural_tokens), stopped, prompt)
            known.lengths.learn_answer(job.answer_tokens, 0.0, prompt)
            if policy.quality.learn and number < SEEN_REPORTS:
                stops = known.lengths.estimate(0.0, prompt).reasoning
                ended = Ended.STOPPED if stopped else Ended.CUT
                trial = Trial.of(policy.rule, ended, min(cut, job.natural_tokens), stops)
                known.quality.learn(trial, float(stopped or rng.random() < 0.4), 0.0)


def capacity_per_s(workers: int, seed: int) -> float:
    """Requests a second that a pool completes without any cut."""
    rng = Random(seed)
    jobs = [Job.draw(rng) for _ in range(2000)]
    output = sum(job.natural_tokens + job.answer_tokens for job in jobs) / len(jobs)
    return workers * SLOTS / (output * STEP_S)


def percentile(values: Sequence[float], level: float) -> float:
    """The value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, math.ceil(level * len(values)) - 1)]


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=40_000, help="at each load (%(default)s)")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.1, 0.7, 1.5], metavar="X")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parser.parse_args()
    bench = Bench(args.tenants, args.workers, args.seed)
    calm_collector()  # as the controller does
    rate = capacity_per_s(args.workers, args.seed)
    rows, per_s, worst_s = [], [], []
    for load in args.loads:
        bench.run(args.requests // 4, load * rate)
        times = bench.run(args.requests, load * rate)
        total_s = sum(times.arrivals_s)
        per_s.append(len(times.arrivals_s) / total_s)
        worst_s.append(percentile(times.arrivals_s, 0.99))
        rows.append(
            (
                f"{load:g} x",
                f"{times.refused / times.decisions:.1%}",
                per_s[-1],
                *(1e6 * percentile(times.arrivals_s, level) for level in (0.5, 0.99, 0.999, 1.0)),
                *(1e6 * percentile(times.ends_s, level) for level in (0.5, 0.99, 1.0)),
            )
        )
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, one used")
    print(f"{args.tenants} tenants, {args.workers} workers; microseconds for an arrival and its decision,")
    print("and for an end and what is learnt from it; load against the capacity for uncut reasoning")
    header = ("load", "refused", "arrivals/s", "p50", "p99", "p99.9", "max", "end p50", "p99", "max")
    print_table(header, rows)
    print_result({"decisions_per_s": round(min(per_s)), "p99_us": round(1e6 * max(worst_s), 1)})


if __name__ == "__main__":
    main()
