"""The command of a worker in front of another server: finds out about the server, measures it, and serves."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from curfew.dialects import DIALECTS, Dialect
from curfew.rpc.durations import duration
from curfew.rpc.errors import RpcError
from curfew.telemetry.logs import LogFormat, configure_logging
from curfew.v1 import worker_pb2 as pb
from worker.model.chat import Chat
from worker.service.door import (
    HelpFormatter,
    add_door_options,
    cannot_start,
    check_door,
    number,
    positive,
    serve_until_told,
)
from worker.service.security import Security, read_key, read_security
from worker.upstream.backend import BackendSettings, UpstreamBackend
from worker.upstream.client import Upstream
from worker.upstream.probing import probe
from worker.upstream.warmup import Speed, WarmUp
from worker.upstream.wish import WishReader

logger = logging.getLogger(__name__)

_MAX_SEQUENCE_TOKENS = 8192
_ENGLISH_BYTES_PER_TOKEN = 4.0
"""Until the warm-up has counted."""


def arguments() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="curfew worker --upstream",
        description="Serves the model of another OpenAI-compatible server.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--upstream", required=True, metavar="URL", help="the server, such as http://127.0.0.1:8000/v1")
    add("--upstream-key-file", type=Path, metavar="FILE", help="file with the key to send to it")
    add("--upstream-model", metavar="NAME", help="if not given, the first that it lists")
    add(
        "--dialect",
        default="auto",
        choices=["auto", *DIALECTS],
        help="what kind of server it is; auto asks it",
    )
    add(
        "--budget",
        choices=["native", "continuation"],
        help="how reasoning is ended: by the server's thinking budget, or by ending its stream and"
        " continuing in a second request, which needs --tokenizer; if not given, native where there is one",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="the directory of the model, for its tokenizer.json",
    )
    add(
        "--thinking-switch",
        default="template",
        choices=["template", "system"],
        help="where a native server is told whether to think: an argument of its chat template, or /think and"
        " /no_think in the system text",
    )
    add("--slots", type=positive, default=8, help="requests that the server runs together")
    add("--queue", type=positive, default=256, help="requests that may wait")
    add(
        "--max-sequence-tokens",
        type=positive,
        help="prompt and output of one request; if not given, asked for",
    )
    add("--silence-s", type=number, default=120.0, help="a stream without a word for so long is given up")
    add_door_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains.

    Returns the exit status: 2 when it cannot start, after one line that says why.
    """
    options = arguments().parse_args(argv)
    configure_logging("info", LogFormat(options.log_format))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        # First what is quick to find wrong.
        security = read_security(options)
        check_door(options)
        return asyncio.run(_run(options, security))
    except (OSError, RpcError, ValueError) as error:
        return cannot_start(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _run(options: argparse.Namespace, security: Security) -> int:
    file = options.upstream_key_file
    key = None if file is None else read_key("--upstream-key-file", file)
    async with Upstream(options.upstream, key=key, silence_s=options.silence_s) as server:
        told = None if options.dialect == "auto" else options.dialect
        found = await probe(server, told, options.upstream_model)
        if found.model is None:
            raise ValueError(f"{options.upstream} lists no model: is it there? --upstream-model names one")
        chat = _chat(options, found.dialect)
        length = options.max_sequence_tokens or found.max_sequence_tokens
        if length is None:
            length = _MAX_SEQUENCE_TOKENS
            logger.warning("the server does not tell how long a sequence may be: %d is assumed", length)
        bytes_per_token = _ENGLISH_BYTES_PER_TOKEN
        switch = options.thinking_switch == "system"
        reader = WishReader(found.dialect, found.model, chat, bytes_per_token, switch)
        speed = await WarmUp(server, reader, time.monotonic).measure(options.slots, length)
        reader = WishReader(found.dialect, found.model, chat, speed.bytes_per_token, switch)
        settings = BackendSettings(options.slots, options.queue, length)
        counted_in_bytes = None if chat is not None else reader.bytes_per_token
        backend = UpstreamBackend(server, reader.table, counted_in_bytes, settings, time.monotonic)
        return await serve_until_told(
            options,
            backend,
            reader,
            _description(reader, speed, settings),
            security,
            stop=asyncio.Event(),
            healthy=lambda: server.is_there(found.dialect.health_path),
        )


def _chat(options: argparse.Namespace, dialect: Dialect) -> Chat | None:
    """The chat format with which reasoning is ended by continuing; None where the server ends it."""
    way = options.budget or ("native" if dialect.budget is not None else "continuation")
    if way == "native":
        if dialect.budget is None:
            raise ValueError(
                f"a server of kind {dialect.name} has no thinking budget; use --budget continuation"
            )
        return None
    if options.tokenizer is None:
        raise ValueError(
            f"--tokenizer DIR is needed: with a server of kind {dialect.name} reasoning is ended by"
            " continuing in the model's chat format"
        )
    return Chat.load(options.tokenizer)


def _description(reader: WishReader, speed: Speed, settings: BackendSettings) -> pb.DescribeWorkerResponse:
    native = reader.chat is None
    return pb.DescribeWorkerResponse(
        model=reader.model,
        version=version("curfew"),
        device=f"upstream:{reader.dialect.name}",
        dtype="unknown",
        limits=pb.WorkerLimits(
            max_sequence_tokens=settings.max_sequence_tokens, slots=settings.slots, queue=settings.queue
        ),
        speed=pb.WorkerSpeed(
            decode=[
                pb.DecodeSpeed(batch_size=size, step=duration(step_s))
                for size, step_s in speed.decode_s.items()
            ],
            prefill_tokens_per_s=speed.prefill_tokens_per_s,
        ),
        bytes_per_token=speed.bytes_per_token,
        capabilities=pb.WorkerCapabilities(
            budget_exactness=pb.BUDGET_EXACTNESS_NATIVE if native else pb.BUDGET_EXACTNESS_CONTINUATION,
            # Where the server does not count in its stream, a piece of text is taken for a token.
            budget_overshoot_tokens=int(native and not reader.dialect.counts),
            adjust=True,
        ),
    )
