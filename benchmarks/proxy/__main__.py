"""What does the controller add to each request and token? `python -m benchmarks.proxy`

The same streams come from the same synthetic worker once through the controller and once through a bare
two-hop gRPC relay, in turn. Four processes: worker, relay, controller, and this one, which is the caller.
Compared are the time of a token from the worker's hands into the caller's, the time from a request to its
first token, and the processor time that controller and relay take for a token, by their own accounts.

What is paced too fast for a machine would be merged by the controller on its way (several tokens a message),
which the relay cannot do and which would make it look cheap: the table tells tokens per message.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import grpc

from benchmarks.harness import print_machine, print_result, print_table
from curfew.processes import Service, start_service
from curfew.v1 import generation_pb2, reasoning_pb2, worker_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

LEAST_STEP_S = 0.02
MOST_TOKENS_PER_S = 1500.0
"""Of all streams together, so that two cores carry all four processes."""
ANSWER_TOKENS = 8
KEY = "benchmark"
ARRIVE_OVER_S = 0.5
"""The streams of a round begin one after the other, over so long."""

Event = reasoning_pb2.GenerateResponse | worker_pb2.WorkerServiceGenerateResponse
Open = Callable[[], AsyncIterator[Event]]


def policy(reasoning_tokens: int) -> str:
    """One tenant, with a deadline, which is followed in flight, but far away."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return f"""\
apiVersion: curfew/v1
tenants:
  - name: caller
    keys: [sha256:{digest}]
    objectives: {{deadline: 10m}}
    mode: think
    brownout: none
    otherwise: best_effort
    budget: {{min: {reasoning_tokens}, max: {reasoning_tokens}, grace: 0, answer: {ANSWER_TOKENS}}}
"""


@dataclass
class Seen:
    """What the caller saw of a round: how long tokens and first tokens took, and in how many messages they
    came. cpu_s: that the process in the middle took for a token.
    """

    tokens_s: list[float] = field(default_factory=list)
    first_tokens_s: list[float] = field(default_factory=list)
    messages: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Way:
    """Through the controller, or through the relay. open: begins a stream."""

    service: Service
    open: Open


@dataclass(frozen=True, slots=True)
class Result:
    """The median of some rounds."""

    token_p50_s: float
    token_p99_s: float
    first_token_s: float
    cpu_s: float
    tokens_per_message: float

    @classmethod
    def of(cls, rounds: Sequence[Seen]) -> Result:
        """From what was seen of each."""
        return cls(
            median(percentile(seen.tokens_s, 0.5) for seen in rounds),
            median(percentile(seen.tokens_s, 0.99) for seen in rounds),
            median(median(seen.first_tokens_s) for seen in rounds),
            median(seen.cpu_s for seen in rounds),
            median(len(seen.tokens_s) / seen.messages for seen in rounds),
        )


async def read(way: Way, wait_s: float, seen: Seen) -> None:
    """Reads one stream to its end."""
    await asyncio.sleep(wait_s)
    began_s, first = time.monotonic(), True
    async for event in way.open():
        if event.WhichOneof("event") != "delta":
            continue
        now_s = time.monotonic()
        sent = event.delta.text.split()
        seen.messages += 1
        seen.tokens_s += [now_s - float(sent_s) for sent_s in sent]
        if first:
            # The worker's own first step is the same both ways.
            seen.first_tokens_s.append(now_s - began_s)
            first = False


async def a_round(way: Way, streams: int) -> Seen:
    """One round of so many streams."""
    seen, before_s = Seen(), cpu_s(way.service)
    delays = (ARRIVE_OVER_S * number / streams for number in range(streams))
    await asyncio.gather(*(read(way, delay_s, seen) for delay_s in delays))
    seen.cpu_s = (cpu_s(way.service) - before_s) / len(seen.tokens_s)
    return seen


def cpu_s(service: Service) -> float:
    """Processor seconds of a process and all its threads, as Linux accounts for them (proc(5))."""
    tasks = Path(f"/proc/{service.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9


async def measure(streams: int, rounds: int, tokens: int) -> tuple[Result, Result]:
    """What the caller sees through the controller, and through the relay."""
    step_s = max(LEAST_STEP_S, streams / MOST_TOKENS_PER_S)
    reasoning_tokens = tokens - ANSWER_TOKENS
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        file = directory / "policy.yaml"
        file.write_text(policy(reasoning_tokens))

        async def start(module: str, *arguments: str) -> tuple[Service, grpc.aio.Channel]:
            service = await start_service(module, arguments)
            stack.push_async_callback(service.stop)
            channel = grpc.aio.insecure_channel(service.addresses["listen"])
            await stack.enter_async_context(channel)
            return service, channel

        worker, _ = await start("benchmarks.proxy.worker", "--step-s", str(step_s))
        address = worker.addresses["listen"]
        relay, to_relay = await start("benchmarks.proxy.relay", "--worker", address)
        doors = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "warning")
        controller, to_controller = await start(
            "controller", "--policy", str(file), "--worker", address, *doors
        )
        question = [generation_pb2.Message(role=generation_pb2.ROLE_USER, content="What is 12 + 37 + 45?")]
        asked = reasoning_pb2.GenerateRequest(messages=question)
        passed = worker_pb2.WorkerServiceGenerateRequest(
            request_id="benchmark",
            messages=question,
            mode=generation_pb2.MODE_THINK,
            budget=generation_pb2.Budget(reasoning_tokens=reasoning_tokens, answer_tokens=ANSWER_TOKENS),
        )
        key = (("authorization", f"Bearer {KEY}"),)
        reasoning, generation = ReasoningServiceStub(to_controller), WorkerServiceStub(to_relay)
        ours = Way(controller, lambda: aiter(reasoning.Generate(asked, metadata=key)))
        bare = Way(relay, lambda: aiter(generation.Generate(passed)))
        for way in (ours, bare):  # connections, caches
            await a_round(way, min(streams, 8))
        by_ours: list[Seen] = []
        by_bare: list[Seen] = []
        for _ in range(rounds):
            by_ours.append(await a_round(ours, streams))
            by_bare.append(await a_round(bare, streams))
    return Result.of(by_ours), Result.of(by_bare)


def percentile(values: Sequence[float], level: float) -> float:
    """The value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, math.ceil(level * len(values)) - 1)]


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128], metavar="N")
    parser.add_argument("--rounds", type=int, default=4, help="by each way (%(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of each stream (%(default)s)")
    args = parser.parse_args()
    if not Path("/proc/self/schedstat").exists():
        parser.error("this needs Linux, which accounts for processor time by the nanosecond")
    rows = []
    added_p50_ms: dict[str, float] = {}
    added_p99_ms: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for streams in args.streams:
        ours, bare = asyncio.run(measure(streams, args.rounds, args.tokens))
        ratio = ours.cpu_s / bare.cpu_s
        for name, result, against in (("controller", ours, ratio), ("bare relay", bare, 1.0)):
            times_s = (result.token_p50_s, result.token_p99_s, result.first_token_s)
            rows.append(
                (
                    f"{streams}, {name}",
                    *(1e3 * seconds for seconds in times_s),
                    1e6 * result.cpu_s,
                    against,
                    result.tokens_per_message,
                )
            )
        added_p50_ms[f"{streams}"] = round(1e3 * (ours.token_p50_s - bare.token_p50_s), 3)
        added_p99_ms[f"{streams}"] = round(1e3 * (ours.token_p99_s - bare.token_p99_s), 3)
        ratios[f"{streams}"] = round(ratio, 2)
    print_machine()
    print("milliseconds of a token from worker to caller, and from a request to its first token;")
    print(f"processor microseconds a token; medians of {args.rounds} rounds of {args.tokens} tokens a stream")
    header = ("streams", "token p50", "p99", "first token", "cpu", "ratio", "tokens/message")
    print_table(header, rows)
    print_result({"added_p50_ms": added_p50_ms, "added_p99_ms": added_p99_ms, "ratio_to_bare_relay": ratios})


if __name__ == "__main__":
    main()
