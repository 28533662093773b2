"""What does telemetry take of a controller's processor time? `python -m benchmarks.telemetry`

Twice over. First the same requests go, in turn, through controllers that differ in nothing but their flags,
each a process of its own, with a synthetic worker behind them all and a real OTLP endpoint; compared is the
processor time by their own accounts. Then what telemetry does for a request is done by itself, again and
again, with real requests' records: that is exact to a microsecond, where the first drowns in a busy machine's
noise. Both are told as a share of what a request takes without telemetry.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from benchmarks.harness import print_machine, print_result, print_table
from benchmarks.proxy.__main__ import ANSWER_TOKENS, KEY, cpu_s, policy
from controller.policy import LivePolicy, parse_policy
from controller.service.journal import Entry
from controller.service.membership import Sources
from controller.service.server import Addresses, Controller
from controller.telemetry.requests import RequestMetrics
from controller.telemetry.settings import TelemetrySettings
from controller.telemetry.spans import log_request, trace_request
from curfew.processes import Service, start_service
from curfew.telemetry.logs import JsonFormatter
from curfew.telemetry.otlp import exporter_to, traces_to
from curfew.telemetry.tracing import Tracing
from curfew.v1 import generation_pb2, reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub

LOOPBACK = "127.0.0.1:0"
STEP_S = 0.02
FLAGS = {
    "off": [],
    "metrics": ["--metrics", LOOPBACK],
    "metrics, traces 10 %": ["--metrics", LOOPBACK, "--otlp", "{otlp}", "--trace-ratio", "0.1"],
    "metrics, traces 100 %": ["--metrics", LOOPBACK, "--otlp", "{otlp}", "--trace-ratio", "1"],
}
OFF = next(iter(FLAGS))
RATIOS = {"10 %": 0.1, "100 %": 1.0}
SPANS = 4
"""Of an answered request, in the controller."""


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans and forgets them."""

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Takes some."""
        return trace_service_pb2.ExportTraceServiceResponse()


class Timed(SpanExporter):
    """Sends spans by another exporter. used_s: processor seconds that this took. spans: that were sent."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.used_s, self.spans = 0.0, 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends some."""
        began_s = time.thread_time()
        result = self._exporter.export(spans)
        self.used_s += time.thread_time() - began_s
        self.spans += len(spans)
        return result

    def shutdown(self) -> None:
        """Sends no more."""
        self._exporter.shutdown()


async def ask(channel: grpc.aio.Channel, requests: int) -> None:
    """Asks so many times at once, and reads all that comes."""
    question = generation_pb2.Message(role=generation_pb2.ROLE_USER, content="What is 12 + 37 + 45?")
    request = reasoning_pb2.GenerateRequest(messages=[question])

    async def one() -> None:
        key = (("authorization", f"Bearer {KEY}"),)
        async for _ in ReasoningServiceStub(channel).Generate(request, metadata=key):
            pass

    await asyncio.gather(*(one() for _ in range(requests)))


async def by_processes(
    stack: AsyncExitStack, worker: str, file: Path, otlp: str, rounds: int, requests: int
) -> tuple[dict[str, list[float]], float]:
    """Processor seconds of a request, by flags and round; and of a scrape."""
    ways: dict[str, tuple[Service, grpc.aio.Channel]] = {}
    for name, flags in FLAGS.items():
        service = await start_service(
            "controller",
            [
                *("--policy", str(file), "--worker", worker, "--listen", LOOPBACK, "--admin", LOOPBACK),
                *("--log-level", "warning", *(flag.format(otlp=otlp) for flag in flags)),
            ],
        )
        stack.push_async_callback(service.stop)
        channel = grpc.aio.insecure_channel(service.addresses["listen"])
        await stack.enter_async_context(channel)
        await ask(channel, requests)  # connections, caches
        ways[name] = service, channel
    used: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (service, channel) in ways.items():
            before_s = cpu_s(service)
            await ask(channel, requests)
            used[name].append((cpu_s(service) - before_s) / requests)
    service, _ = ways["metrics"]
    return used, await _scrape_s(service)


async def _scrape_s(service: Service, scrapes: int = 20) -> float:
    def scrape() -> None:
        urllib.request.urlopen(f"http://{service.addresses['metrics']}/metrics").read()

    before_s = cpu_s(service)
    for _ in range(scrapes):
        await asyncio.to_thread(scrape)
    return (cpu_s(service) - before_s) / scrapes


async def records(worker: str, text: str, requests: int) -> list[Entry]:
    """What a controller knows of real requests that are over."""
    seen: list[Entry] = []
    settings = TelemetrySettings(also=[lambda entry, _: seen.append(entry)])
    live = LivePolicy(lambda: parse_policy(text, "policy.yaml", None))
    controller = Controller(live, Sources([worker], None), time.monotonic, telemetry=settings)
    addresses = await controller.start(Addresses(LOOPBACK, LOOPBACK))
    await controller.had_worker(10)
    async with grpc.aio.insecure_channel(addresses.listen) as channel:
        await ask(channel, requests)
    await controller.stop(1.0)
    return seen


def by_itself(entries: Sequence[Entry], tracing: Mapping[str, Tracing], repeats: int) -> dict[str, float]:
    """Processor seconds of a request: counting it, tracing it, logging it as JSON."""
    counted = RequestMetrics(lambda tenant: tenant)
    log = logging.getLogger("controller.telemetry.spans")
    handler = logging.StreamHandler(open(os.devnull, "w"))  # noqa: SIM115  # to the process's end
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.propagate, log.level = False, logging.INFO
    now_s = time.monotonic()

    def traced(traces: Tracing) -> Callable[[Entry], None]:
        def trace(entry: Entry) -> None:
            entry.trace = traces.begin((), entry.receipt_s)
            _ = entry.trace.headers
            trace_request(entry, now_s)

        return trace

    parts: dict[str, Callable[[Entry], None]] = {
        "counting": lambda entry: counted.note(entry, now_s),
        **{f"tracing {name}": traced(traces) for name, traces in tracing.items()},
        "a log line": lambda entry: log_request(entry, now_s),
    }
    return {name: min(_thread_s(part, entries) for _ in range(repeats)) for name, part in parts.items()}


def _thread_s(part: Callable[[Entry], None], entries: Sequence[Entry]) -> float:
    began_s = time.thread_time()
    for entry in entries:
        part(entry)
    return (time.thread_time() - began_s) / len(entries)


async def measure(rounds: int, requests: int, tokens: int) -> None:
    """Measures, prints two tables and one JSON line."""
    async with AsyncExitStack() as stack:
        text = policy(tokens - ANSWER_TOKENS)
        file = Path(stack.enter_context(TemporaryDirectory())) / "policy.yaml"
        file.write_text(text)
        server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Sink(), server)
        otlp = f"127.0.0.1:{server.add_insecure_port(LOOPBACK)}"
        await server.start()
        stack.push_async_callback(server.stop, None)
        worker = await start_service("benchmarks.proxy.worker", ["--step-s", str(STEP_S)])
        stack.push_async_callback(worker.stop)
        address = worker.addresses["listen"]
        used, scrape_s = await by_processes(stack, address, file, otlp, rounds, requests)
        entries = await records(address, text, requests)
        exporters = [Timed(exporter_to(otlp)) for _ in RATIOS]
        async with AsyncExitStack() as traces:
            tracing = {
                name: await traces.enter_async_context(
                    traces_to(exporter, "benchmark", ratio, time.monotonic)
                )
                for (name, ratio), exporter in zip(RATIOS.items(), exporters, strict=True)
            }
            parts = await asyncio.to_thread(by_itself, entries, tracing, rounds)
        every = exporters[-1]
        parts["sending all spans"] = every.used_s / every.spans * SPANS
    off_s = median(used[OFF])
    print_machine()
    print(f"processor time of a request of {tokens} tokens, medians of {rounds} rounds of {requests}")
    ratios = {
        name: median(mine / its for mine, its in zip(of_it, used[OFF], strict=True))
        for name, of_it in used.items()
    }
    print_table(
        ("controller", "µs", "ratio"),
        [(name, 1e6 * median(of_it), ratios[name]) for name, of_it in used.items()],
    )
    print(f"a scrape takes {1e3 * scrape_s:.2g} ms")
    print()
    print("telemetry's part of it, done by itself")
    print_table(
        ("for each request", "µs", "% of it"),
        [(name, 1e6 * part_s, 100 * part_s / off_s) for name, part_s in parts.items()],
    )
    print_result(
        {
            "request_us": round(1e6 * off_s),
            "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
            "part_us": {name: round(1e6 * part_s, 1) for name, part_s in parts.items()},
            "scrape_ms": round(1e3 * scrape_s, 2),
        }
    )


def main() -> None:
    """Reads how much to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="through each controller (%(default)s)")
    parser.add_argument("--requests", type=int, default=32, help="of a round, at once (%(default)s)")
    parser.add_argument("--tokens", type=int, default=50, help="of each request (%(default)s)")
    args = parser.parse_args()
    asyncio.run(measure(args.rounds, args.requests, args.tokens))


if __name__ == "__main__":
    main()
