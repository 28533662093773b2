"""The worker's command: reads its arguments, loads the model, serves until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from curfew.rpc.server import Server, on_signals
from curfew.v1 import worker_pb2 as pb
from curfew.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server
from worker.engine.build import EngineOptions, Model, build_engine, load_model
from worker.engine.closing import Closing
from worker.engine.engine import Engine
from worker.model.chat import Chat
from worker.model.progress import loading_bar
from worker.service import wire
from worker.service.engine_thread import EngineThread
from worker.service.servicer import ServicerSettings, WorkerServicer
from worker.service.warmup import Speed, measure

SERVICE = "curfew.v1.WorkerService"
_MAX_MESSAGE_BYTES = 8 << 20
# Between bytes and tokens: enough prose to be typical.
_PROSE = (
    "A worker runs the model and streams its tokens; a controller decides, for each request, whether to "
    "reason and for how long, so that the answer arrives in time."
)


def arguments() -> argparse.ArgumentParser:
    """The command's arguments."""
    default = EngineOptions()
    parser = argparse.ArgumentParser(prog="curfew worker", description="Serves one model on one device.")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="Hugging Face model directory"
    )
    parser.add_argument("--listen", default="127.0.0.1:7210", metavar="HOST:PORT", help="port 0 picks one")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one step")
    parser.add_argument("--slots", type=int, default=default.slots, help="state slots")
    parser.add_argument("--cache-mib", type=int, help="memory for slots and pages; default: what is free")
    parser.add_argument("--page-tokens", type=int, default=default.page_tokens)
    parser.add_argument("--step-tokens", type=int, default=default.step_tokens)
    parser.add_argument("--idle-step-tokens", type=int, default=default.idle_step_tokens)
    parser.add_argument("--queue", type=int, default=default.queue, help="requests that may wait")
    parser.add_argument("--max-sequence-tokens", type=int, help="prompt and output of one request")
    parser.add_argument("--no-prefix-cache", action="store_true")
    parser.add_argument("--flush-ms", type=float, default=5.0, help="least time between a stream's deltas")
    parser.add_argument("--grace-s", type=float, default=30.0, help="time to finish in when told to stop")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs until SIGTERM or SIGINT. Exits with 2 and one line when it cannot start, with 1 when the device
    fails.
    """
    options = arguments().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        torch.set_num_threads(options.threads)
        with loading_bar(str(options.model)) as progress:
            model = load_model(options.model, device=options.device, dtype=_dtype(options), progress=progress)
        engine = build_engine(model, _engine_options(options), time.monotonic)
        speed = measure(
            engine, model.chat, Closing(model.chat.encode, model.chat.token_bytes), time.monotonic
        )
        healthy = asyncio.run(_serve(options, model, engine, speed))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"curfew worker: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0 if healthy else 1)


async def _serve(options: argparse.Namespace, model: Model, engine: Engine, speed: Speed) -> bool:
    """Serves until told to stop. Returns whether the device was well to the end."""
    stop = asyncio.Event()
    thread = EngineThread(engine, on_device_failure=stop.set)
    server = Server(max_message_bytes=_MAX_MESSAGE_BYTES)
    servicer = WorkerServicer(
        thread,
        model,
        _description(model, engine, speed),
        ServicerSettings(flush_s=options.flush_ms / 1000),
        clock=time.monotonic,
        random_seed=lambda: random.getrandbits(63),
    )
    add_WorkerServiceServicer_to_server(servicer, server.grpc)
    address = await server.start(options.listen, [SERVICE])
    thread.start()
    await server.set_serving(True)
    print(f"curfew worker ready: listen={address}", flush=True)
    with on_signals(stop.set):
        await stop.wait()
    await server.drain(0.0 if thread.failed else options.grace_s)
    await thread.stop()
    return not thread.failed


def _dtype(options: argparse.Namespace) -> torch.dtype:
    if options.dtype == "auto":
        return torch.float32 if options.device.type == "cpu" else torch.bfloat16
    return torch.float32 if options.dtype == "float32" else torch.bfloat16


def _engine_options(options: argparse.Namespace) -> EngineOptions:
    return EngineOptions(
        slots=options.slots,
        cache_bytes=None if options.cache_mib is None else options.cache_mib << 20,
        page_tokens=options.page_tokens,
        step_tokens=options.step_tokens,
        idle_step_tokens=options.idle_step_tokens,
        queue=options.queue,
        max_sequence_tokens=options.max_sequence_tokens,
        checkpoints=0 if options.no_prefix_cache else EngineOptions().checkpoints,
    )


def _description(model: Model, engine: Engine, speed: Speed) -> pb.DescribeWorkerResponse:
    network, settings = model.network, engine.settings
    device = network.device
    name = device.type if device.type == "cpu" else f"{device}:{torch.cuda.get_device_name(device)}"
    return pb.DescribeWorkerResponse(
        model=model.name,
        version=version("curfew"),
        device=name,
        dtype=str(network.dtype).removeprefix("torch."),
        limits=pb.WorkerLimits(
            max_sequence_tokens=settings.max_sequence_tokens,
            slots=settings.slots,
            pages=settings.pages,
            page_tokens=settings.page_tokens,
            queue=settings.queue,
        ),
        speed=pb.WorkerSpeed(
            decode=[
                pb.DecodeSpeed(batch_size=size, step=wire.duration(step_s))
                for size, step_s in speed.decode_s.items()
            ],
            prefill_tokens_per_s=speed.prefill_tokens_per_s,
        ),
        bytes_per_token=_bytes_per_token(model.chat),
    )


def _bytes_per_token(chat: Chat) -> float:
    return len(_PROSE.encode()) / len(chat.encode(_PROSE))
