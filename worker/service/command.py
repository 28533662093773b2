"""The worker's command: reads its arguments, loads the model, serves until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from curfew.rpc.collector import calm_collector
from curfew.rpc.durations import duration
from curfew.telemetry.logs import LogFormat, configure_logging
from curfew.v1 import worker_pb2 as pb
from worker.engine.build import EngineOptions, Model, build_engine, load_model
from worker.engine.closing import Closing
from worker.engine.engine import Engine
from worker.engine.grammar import Grammars
from worker.engine.memory import capacity, parse_bytes, plan_memory
from worker.model.chat import Chat
from worker.model.config import ModelConfig
from worker.model.heap import keep_freed_memory
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.progress import loading_bar
from worker.service.door import (
    HelpFormatter,
    add_door_options,
    cannot_start,
    check_door,
    count,
    number,
    positive,
    serve_until_told,
)
from worker.service.engine_thread import EngineThread
from worker.service.requests import RequestReader
from worker.service.security import Security, read_security
from worker.service.warmup import Speed, measure

logger = logging.getLogger(__name__)

# Between bytes and tokens: enough prose to be typical.
_PROSE = (
    "A worker runs the model and streams its tokens; a controller decides, for each request, whether to "
    "reason and for how long, so that the answer arrives in time."
)


def arguments() -> argparse.ArgumentParser:
    """The command's arguments."""
    default = EngineOptions()
    parser = argparse.ArgumentParser(
        prog="curfew worker",
        description="Serves one model on one device; with --upstream URL, that of another server.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="Hugging Face model directory")
    add("--device", default="cpu", help="such as cpu or cuda:0")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the weights")
    add(
        "--weights",
        default=WeightFormat.FULL.value,
        choices=[weights.value for weights in WeightFormat],
        help="how the layers' projections are held: int8 and fp8 take half of bfloat16's memory",
    )
    add(
        "--kernels",
        default=os.environ.get("CURFEW_KERNELS"),
        choices=["torch", "triton", "mamba_ssm"],
        help="implementation; if not given, CURFEW_KERNELS or the device's fastest",
    )
    add(
        "--load-format",
        default="safetensors",
        choices=["safetensors", "dummy"],
        help="dummy: random weights, for measuring a shape",
    )
    add("--plan-memory", action="store_true", help="only print how --device-memory would be divided")
    add("--device-memory", type=_size, metavar="SIZE", help="such as 22GiB")
    add("--threads", type=positive, default=1, help="CPU threads of one step")
    add(
        "--compile",
        action="store_true",
        help="compile the decode step for this CPU: half a minute at the first start, and g++",
    )
    add("--compile-cache", type=Path, default=_cache(), metavar="DIR", help="where compiled steps are kept")
    add("--slots", type=positive, default=default.slots, help="sequences that run together")
    add("--checkpoints", type=count, default=default.checkpoints, help="states of shared prompts to keep")
    add("--cache-mib", type=positive, help="memory for states and pages; if not given, what is free")
    add("--page-tokens", type=positive, default=default.page_tokens, help="tokens of a page")
    add(
        "--step-tokens",
        type=positive,
        default=default.step_tokens,
        help="prompt tokens of a step; if not given, by device",
    )
    add(
        "--idle-step-tokens",
        type=positive,
        default=default.idle_step_tokens,
        help="prompt tokens of a step while nothing decodes; if not given, by device",
    )
    add("--queue", type=positive, default=default.queue, help="requests that may wait")
    add("--max-sequence-tokens", type=positive, help="prompt and output of one request")
    add(
        "--least-step-ms",
        type=number,
        default=0.0,
        help="least time of a step, to rehearse the speed of a slower device",
    )
    add(
        "--step-limit-s",
        type=positive,
        default=120,
        help="a step that takes longer is a failure of the device; more where a long prompt waits",
    )
    add_door_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains.

    Returns the exit status: 2 when it cannot start, after one line that says why; 1 when the device failed.
    A second signal ends it at once.
    """
    options = arguments().parse_args(argv)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace) -> int:
    configure_logging("info", LogFormat(options.log_format))
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    try:
        if options.plan_memory:
            print(_memory_plan(options))
            return 0
        # First what is quick to find wrong.
        security = read_security(options)
        check_door(options)
        model, engine = _load(options)
        closing = Closing(model.chat.encode, model.chat.token_bytes)
        speed = measure(engine, model.chat, closing, time.monotonic)
    # torch raises RuntimeError for a device that is not there and for memory that does not suffice.
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        return cannot_start(error)
    reader = RequestReader(model.chat, closing, _grammars(model))
    description = _description(model, engine, speed, has_forms=reader.grammars is not None)
    calm_collector()
    return asyncio.run(_serve(options, engine, reader, description, security))


def _load(options: argparse.Namespace) -> tuple[Model, Engine]:
    device = torch.device(options.device)
    if options.dtype == "auto":
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    else:
        dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    with loading_bar(str(options.model)) as progress:
        model = load_model(
            options.model,
            device=device,
            dtype=dtype,
            kernels=options.kernels,
            weights=WeightFormat(options.weights),
            dummy=options.load_format == "dummy",
            progress=progress,
        )
    licence = model.licence
    told = " ".join(text for text in (licence.name, licence.url, licence.attribution) if text)
    logger.info("model %s, licence: %s", model.name, told or "not told by its directory")
    return model, build_engine(model, _engine_options(options), time.monotonic)


def _memory_plan(options: argparse.Namespace) -> str:
    """The plan for a GPU, in bfloat16 unless told otherwise: no device is asked."""
    if options.device_memory is None:
        raise ValueError("--plan-memory needs --device-memory, such as 22GiB")
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    config = ModelConfig.load(options.model)
    memory, engine = options.device_memory, _engine_options(options)
    plan = plan_memory(config, memory, engine, dtype=dtype, weights=WeightFormat(options.weights))
    return f"{plan.table()}\n{capacity(config, memory, engine, dtype=dtype)}"


def _engine_options(options: argparse.Namespace) -> EngineOptions:
    return EngineOptions(
        slots=options.slots,
        checkpoints=options.checkpoints,
        cache_bytes=None if options.cache_mib is None else options.cache_mib << 20,
        page_tokens=options.page_tokens,
        step_tokens=options.step_tokens,
        idle_step_tokens=options.idle_step_tokens,
        queue=options.queue,
        max_sequence_tokens=options.max_sequence_tokens,
        least_step_s=options.least_step_ms / 1000,
        compiled=options.compile_cache if options.compile else None,
    )


async def _serve(
    options: argparse.Namespace,
    engine: Engine,
    reader: RequestReader,
    description: pb.DescribeWorkerResponse,
    security: Security,
) -> int:
    stop = asyncio.Event()
    thread = EngineThread(engine, on_failure=stop.set, step_limit_s=options.step_limit_s)
    return await serve_until_told(
        options,
        thread,
        reader,
        description,
        security,
        stop=stop,
        begin=thread.start,
        end=thread.stop,
        failed=lambda: thread.failed,
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "curfew"


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _grammars(model: Model) -> Grammars | None:
    """What holds answers to their form; None without llguidance."""
    try:
        return Grammars(model.chat, model.config.vocab_size)
    except ImportError:
        logger.warning("llguidance is not installed; requests with tools or answer formats are refused")
        return None


def _description(model: Model, engine: Engine, speed: Speed, *, has_forms: bool) -> pb.DescribeWorkerResponse:
    network, settings = model.network, engine.settings
    device = network.device
    name = device.type if device.type == "cpu" else f"{device}:{torch.cuda.get_device_name(device)}"
    return pb.DescribeWorkerResponse(
        model=model.name,
        version=version("curfew"),
        device=name,
        dtype=_number_types(network),
        limits=pb.WorkerLimits(
            max_sequence_tokens=settings.max_sequence_tokens,
            slots=settings.slots,
            pages=settings.pages,
            page_tokens=settings.page_tokens,
            queue=settings.queue,
        ),
        speed=pb.WorkerSpeed(
            decode=[
                pb.DecodeSpeed(batch_size=size, step=duration(step_s))
                for size, step_s in speed.decode_s.items()
            ],
            prefill_tokens_per_s=speed.prefill_tokens_per_s,
        ),
        bytes_per_token=_bytes_per_token(model.chat),
        licence=pb.ModelLicence(
            name=model.licence.name, url=model.licence.url, attribution=model.licence.attribution
        ),
        capabilities=pb.WorkerCapabilities(
            budget_exactness=pb.BUDGET_EXACTNESS_EXACT,
            resume=True,
            adjust=True,
            token_ids=True,
            tools=has_forms,
            answer_format=has_forms,
            probe=True,
        ),
    )


def _number_types(network: Network) -> str:
    """Such as "float32", or "bfloat16, int8 weights"."""
    dtype = str(network.dtype).removeprefix("torch.")
    return dtype if network.weights is WeightFormat.FULL else f"{dtype}, {network.weights.value} weights"


def _bytes_per_token(chat: Chat) -> float:
    return len(_PROSE.encode()) / len(chat.encode(_PROSE))
