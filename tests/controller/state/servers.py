"""Real servers for tests, each on a free port."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.redis_server import Server, free_port

__all__ = ["Server", "free_port", "serving", "serving_as_cluster"]


@contextmanager
def serving(directory: Path, *options: str, program: Sequence[str] = ()) -> Iterator[Server]:
    server = Server(directory, options, program)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving_as_cluster(directory: Path) -> Iterator[Server]:
    """A cluster of one: it refuses scripts whose keys are not all in one slot."""
    # Its second port would be the first and 10,000, which may not exist.
    with serving(directory, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        assert server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == b"+OK\r\n"
        until_s = time.monotonic() + 20
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            assert time.monotonic() < until_s, "the cluster does not form"
            time.sleep(0.005)
        yield server
