"""What a long prompt does to those who only ask whether the worker lives: `python -m benchmarks.isolation`.

A worker process computes one prompt; meanwhile its health is asked over gRPC, up to a hundred times a second.
An answer should take no more than 50 ms.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.harness import arguments, print_machine, print_result, print_table
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

PAUSE_S = 0.01
READY = "curfew worker ready: listen="
SPARE_TOKENS = 200


@contextmanager
def worker(model: Path, max_sequence_tokens: int) -> Iterator[str]:
    """A worker process; gives its address."""
    command = [sys.executable, "-m", "worker", "--model", str(model), "--listen", "127.0.0.1:0"]
    command += ["--max-sequence-tokens", str(max_sequence_tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                raise RuntimeError("the worker did not start: run `curfew worker` to see why")
            yield line.removeprefix(READY).strip()
        finally:
            process.terminate()


def checks_while(
    address: str, request: worker_pb2.WorkerServiceGenerateRequest
) -> tuple[list[float], int, float]:
    """Runs a request. Seconds of each health check meanwhile, its prompt's tokens, and its own seconds."""
    seconds: list[float] = []
    over = threading.Event()

    def check() -> None:
        with grpc.insecure_channel(address) as channel:
            health = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            while not over.wait(PAUSE_S):
                began_s = time.perf_counter()
                health(health_pb2.HealthCheckRequest())
                seconds.append(time.perf_counter() - began_s)

    checking = threading.Thread(target=check)
    began_s = time.perf_counter()
    with grpc.insecure_channel(address) as channel:
        checking.start()
        try:
            responses = list(WorkerServiceStub(channel).Generate(request))
        finally:
            over.set()
            checking.join()
    return seconds, responses[-1].completion.usage.prompt_tokens, time.perf_counter() - began_s


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = arguments(__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=100_000, metavar="N", help="the prompt's length")
    args = parser.parse_args()
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id="long",
        # Of the demo model every character is a token.
        messages=[pb.Message(role=pb.ROLE_USER, content="1" * args.prompt_tokens)],
        mode=pb.MODE_NO_THINK,
        budget=pb.Budget(answer_tokens=1),
    )
    with worker(args.model, args.prompt_tokens + SPARE_TOKENS) as address:
        seconds, tokens, took_s = checks_while(address, request)
    p99_ms, most_ms = 1000 * quantiles(seconds, n=100)[98], 1000 * max(seconds)
    print_machine()
    print(f"a prompt of {tokens} tokens, computed in {took_s:.1f} s")
    print_table(
        ("health checks", "median ms", "p99 ms", "max ms"),
        [(len(seconds), 1000 * median(seconds), p99_ms, most_ms)],
    )
    print_result(
        {"health_p99_ms_during_prefill": round(p99_ms, 2), "health_max_ms_during_prefill": round(most_ms, 2)}
    )


if __name__ == "__main__":
    main()
