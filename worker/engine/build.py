"""Makes an engine: a model directory, how much memory, which clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels import kernels_for
from worker.engine.compiled import compiled_decode
from worker.engine.engine import Engine, EngineSettings
from worker.engine.graphs import DecodeGraphs, cuda_capture, ladder
from worker.engine.runner import Runner
from worker.engine.workspace import measure_workspace
from worker.model.chat import Chat
from worker.model.checkpoint import load_network
from worker.model.config import ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.licence import UNTOLD, Licence, read_licence
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.pools import Pools

logger = logging.getLogger(__name__)

# Of a GPU's free memory, what the pools leave: fragments, and libraries that allocate later.
_GPU_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is loaded. name: of its directory. licence: as that tells."""

    name: str
    config: ModelConfig
    chat: Chat
    network: Network
    licence: Licence = UNTOLD


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an operator says of an engine; `EngineSettings` are the sizes that come of it."""

    slots: int = 32
    """Sequences that run together: one state slot each."""
    checkpoints: int = 8
    """States of shared prompts that are kept; 0 for none."""
    cache_bytes: int | None = None
    """Memory for slots and pages together. None: what a GPU has free; 256 MiB on a CPU."""
    page_tokens: int = 32
    step_tokens: int | None = None
    """Prefill tokens of a step while something decodes. None: see `prefill_tokens`."""
    idle_step_tokens: int | None = None
    """Prefill tokens of a step while nothing decodes. None: see `prefill_tokens`."""
    queue: int = 256
    """Requests that may wait."""
    max_sequence_tokens: int | None = None
    """Prompt and output of one request. None: what the model allows, if as many fit."""
    least_step_s: float = 0.0
    """See `EngineSettings`."""
    compiled: Path | None = None
    """Directory of compiled decode steps: with it, one is used, and made where it is not there yet."""


def load_model(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kernels: str | None = None,
    weights: WeightFormat = WeightFormat.FULL,
    dummy: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Loads a Hugging Face model directory. kernels: see `kernels_for`; by default those of PyTorch for an
    fp32 model. weights: how the projections are held; they are quantised as they are read. dummy: with
    random weights, for measuring a shape without its checkpoint. progress: see `load_network`.

    Raises UnsupportedModelError, CheckpointError or OSError; the message names the file. ValueError and
    ImportError are those of `kernels_for`.
    """
    config = ModelConfig.load(directory)
    chat = Chat.load(directory, config.end_token_ids)
    # Triton's tiles are for numbers of two bytes: in fp32 they would spill their registers.
    chosen = kernels_for(device, kernels or ("torch" if dtype == torch.float32 else None))
    if dummy:
        tensors = DummyTensors(device=device, dtype=dtype)
        network = Network(config, tensors, chosen, dtype=dtype, weights=weights)
    else:
        network = load_network(
            directory, config, chosen, dtype=dtype, weights=weights, device=device, progress=progress
        )
    return Model(directory.resolve().name, config, chat, network, read_licence(directory))


def build_engine(model: Model, options: EngineOptions, clock: Callable[[], float]) -> Engine:
    """Allocates the pools and makes an engine. clock: monotonic, in seconds.

    Raises ValueError when the memory does not hold the slots and one page for each, or not the longest
    sequence that `options` asks for. With `compiled`, ValueError and OSError are also those of
    `compiled_decode`.
    """
    config, network = model.config, model.network

    def pools(slots: int, pages: int) -> Pools:
        return Pools.allocate(
            config,
            slots=slots,
            pages=pages,
            page_tokens=options.page_tokens,
            dtype=network.dtype,
            device=network.device,
        )

    one = pools(1, 1)
    memory = options.cache_bytes
    if memory is None:
        memory = _free_bytes(network, options)
    longest = options.max_sequence_tokens or config.max_sequence_tokens
    pages = page_count(memory, options, longest, slot_bytes=one.slot_bytes, page_bytes=one.page_bytes)
    room = pages * options.page_tokens
    if options.max_sequence_tokens is not None and longest > room:
        raise ValueError(f"max_sequence_tokens {longest} exceeds the {room} tokens of {pages} pages")
    step_tokens, idle_step_tokens = prefill_tokens(options, network.device.type)
    settings = EngineSettings(
        slots=options.slots,
        checkpoints=options.checkpoints,
        pages=pages,
        page_tokens=options.page_tokens,
        step_tokens=step_tokens,
        idle_step_tokens=idle_step_tokens,
        queue=options.queue,
        max_sequence_tokens=min(longest, room),
        least_step_s=options.least_step_s,
    )
    cache = pools(options.slots + options.checkpoints, pages)
    captured = network.device.type == "cuda" and network.skips_padding
    graphs = _decode_graphs(network, cache, settings) if captured else None
    compiled = None
    if options.compiled is not None:
        compiled = compiled_decode(network, cache, options.page_tokens, options.compiled, _tell_of_compiling)
    runner = Runner(network, cache, options.page_tokens, graphs, compiled)
    return Engine(runner, model.chat, settings, clock)


def _tell_of_compiling(package: Path) -> None:
    logger.info(
        "compiling the decode step, once for this model's shape: about half a minute; for %s", package
    )


def _decode_graphs(network: Network, cache: Pools, settings: EngineSettings) -> DecodeGraphs:
    return DecodeGraphs(
        network,
        cache,
        page_tokens=settings.page_tokens,
        max_pages=-(-settings.max_sequence_tokens // settings.page_tokens),
        sizes=ladder(settings.slots),
        capture=cuda_capture(network.device),
    )


def prefill_tokens(options: EngineOptions, device_type: str) -> tuple[int, int]:
    """Prefill tokens of a step while something decodes, and while nothing does.

    What `options` leave open is chosen so that a step beside decodes takes a few times as long as theirs
    alone, and one without them is near the best throughput, but still short: a request that arrives
    meanwhile waits for it. On a GPU a decode step waits for memory, and some hundred tokens more cost
    little.
    """
    step, idle = (64, 512) if device_type == "cpu" else (512, 2048)
    return options.step_tokens or step, options.idle_step_tokens or idle


def page_count(memory: int, options: EngineOptions, longest: int, *, slot_bytes: int, page_bytes: int) -> int:
    """Pages that fit beside the slots, but no more than all slots can use for sequences of `longest` tokens.

    Raises ValueError when they do not hold one page for each slot.

    >>> page_count(1000, EngineOptions(slots=2, checkpoints=0), 9999, slot_bytes=100, page_bytes=10)
    80
    """
    states = options.slots + options.checkpoints
    for_pages = memory - states * slot_bytes
    if for_pages < options.slots * page_bytes:
        raise ValueError(
            f"{memory} bytes do not hold {states} states of {slot_bytes} bytes"
            f" and {options.slots} pages of {page_bytes} bytes"
        )
    useful = options.slots * -(-longest // options.page_tokens)
    # A model without attention layers has pages of no size.
    return min(useful, for_pages // page_bytes) if page_bytes else useful


def _free_bytes(network: Network, options: EngineOptions) -> int:
    if network.device.type == "cpu":
        return 256 << 20
    workspace = measure_workspace(
        network,
        page_tokens=options.page_tokens,
        tokens=max(prefill_tokens(options, network.device.type)),
        sequences=options.slots,
    )
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(network.device)
    return int(free * _GPU_SHARE) - workspace
