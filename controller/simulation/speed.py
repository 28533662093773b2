"""How fast a simulated worker is: presets, files, and what a running worker says of itself.

A speed file is what WorkerService.DescribeWorker answers, in protobuf's JSON (or as YAML), which is what
`curfew policy check --speed` reads too, and may have a key `engine` beside it with what a description does
not tell: see `EngineDetails`. `curfew policy speed HOST:PORT` writes one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from google.protobuf import json_format

from controller.planning.speed import DecodeCurve
from controller.policy.document import PolicyError, read_document
from controller.policy.schema import did_you_mean
from curfew.rpc.durations import duration, seconds
from curfew.v1 import worker_pb2

NOISE_STEPS = 16
"""A factor of `step_ratios` holds for so many steps: what slows a machine down lasts longer than one."""


class SpeedError(Exception):
    """A worker's speed cannot be had; the message says why."""


@dataclass(frozen=True, slots=True)
class EngineDetails:
    """What a description does not tell of a worker's engine. The defaults are those of a worker on a GPU.

    step_tokens, idle_step_tokens: prompt tokens of a step while something decodes, and while nothing does.
    chunk_tokens: pieces of a prompt end with a multiple of so many. least_step_s: a step takes at least so
    long. piece_s: added to a step that computes a piece of a prompt or a closing text. context_token_s: added
    to a step for each token that its sequences have so far. relay_s: mean of the time that messages and event
    loops take from the controller to the engine and back, both together. boundary_tokens: mean number of
    tokens from where reasoning is told to end to the end of the sentence. closing_tokens: of the closing
    text. step_ratios: times of `NOISE_STEPS` steps over those expected, as they were observed; what comes in
    a simulation is drawn from them.
    """

    step_tokens: int = 512
    idle_step_tokens: int = 2048
    chunk_tokens: int = 128
    least_step_s: float = 0.0
    piece_s: float = 0.0
    context_token_s: float = 0.0
    relay_s: float = 0.003
    boundary_tokens: float = 12.0
    closing_tokens: int = 5
    step_ratios: tuple[float, ...] = (0.97, 0.98, 0.99, 0.99, 1.0, 1.0, 1.0, 1.01, 1.02, 1.06)


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """A worker, as far as its timing depends on it. source: where the numbers are from, in words."""

    name: str
    source: str
    decode: DecodeCurve
    prefill_tokens_per_s: float
    slots: int
    max_sequence_tokens: int
    page_tokens: int
    pages: int
    queue: int
    bytes_per_token: float = 4.0
    engine: EngineDetails = field(default_factory=EngineDetails)

    def step_s(self, sequences: int, context_tokens: float, prompt_tokens: int, ratio: float) -> float:
        """Seconds of a step of so many decoding sequences, of so many tokens together, that also computes so
        many tokens of prompts, on a machine that is slower than usual by a ratio.
        """
        engine = self.engine
        # A prompt that is computed alone took the measured rate, with all that a step costs.
        time_s = self.decode.step_s(sequences) if sequences else 0.0
        time_s += context_tokens * engine.context_token_s
        if prompt_tokens:
            time_s += engine.piece_s + prompt_tokens / self.prefill_tokens_per_s
            time_s = max(time_s, self.decode.step_s(1))
        return ratio * max(engine.least_step_s, time_s)

    def description(self) -> worker_pb2.DescribeWorkerResponse:
        """What it says of itself, without a load."""
        least_s = self.engine.least_step_s
        return worker_pb2.DescribeWorkerResponse(
            model=self.name,
            device="simulated",
            limits=worker_pb2.WorkerLimits(
                max_sequence_tokens=self.max_sequence_tokens,
                slots=self.slots,
                pages=self.pages,
                page_tokens=self.page_tokens,
                queue=self.queue,
            ),
            speed=worker_pb2.WorkerSpeed(
                decode=[
                    worker_pb2.DecodeSpeed(batch_size=size, step=duration(max(step_s, least_s)))
                    for size, step_s in zip(self.decode.batch_sizes, self.decode.steps_s, strict=True)
                ],
                prefill_tokens_per_s=self.prefill_tokens_per_s,
            ),
            bytes_per_token=self.bytes_per_token,
        )

    @classmethod
    def described(
        cls, message: worker_pb2.DescribeWorkerResponse, source: str, engine: EngineDetails
    ) -> WorkerModel:
        """The worker that describes itself so. Raises ValueError where something needed is missing."""
        limits = message.limits
        if min(limits.slots, limits.max_sequence_tokens) < 1:
            raise ValueError("limits.slots and limits.maxSequenceTokens must be at least 1")
        if message.speed.prefill_tokens_per_s <= 0:
            raise ValueError("speed.prefillTokensPerS must be above 0")
        points = [(point.batch_size, seconds(point.step)) for point in message.speed.decode]
        page_tokens = limits.page_tokens or 1
        return cls(
            name=message.model or "worker",
            source=source,
            decode=DecodeCurve.through(points),
            prefill_tokens_per_s=message.speed.prefill_tokens_per_s,
            slots=limits.slots,
            max_sequence_tokens=limits.max_sequence_tokens,
            page_tokens=page_tokens,
            pages=limits.pages or limits.slots * -(-limits.max_sequence_tokens // page_tokens),
            queue=limits.queue or 256,
            bytes_per_token=message.bytes_per_token or 4.0,
            engine=engine,
        )


def speed_text(message: worker_pb2.DescribeWorkerResponse, engine: EngineDetails) -> str:
    """A speed file."""
    described = json_format.MessageToDict(message)
    described.pop("load", None)
    details = {name: getattr(engine, name) for name in _DETAILS}
    return json.dumps({**described, "engine": details}, indent=2) + "\n"


def find_speed(name: str) -> WorkerModel:
    """The preset of this name, or what the file of this name says. Raises SpeedError."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.exists():
        near = did_you_mean(name, PRESETS)
        raise SpeedError(f"{name!r} is neither a file nor one of {', '.join(PRESETS)}{near}")
    try:
        return parse_speed(path.read_text(), f"from {name}")
    except OSError as error:
        raise SpeedError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        # It may hold what the file holds.
        raise SpeedError(f"{name}: {error!s:.300}") from None


def parse_speed(text: str, source: str) -> WorkerModel:
    """Reads a speed file's text. Raises ValueError."""
    try:
        content = read_document(text, source).value
    except PolicyError as error:
        at, why = error.problems[0].mark, error.problems[0].message
        raise ValueError(f"neither JSON nor YAML: line {at.line}, column {at.column}: {why}") from None
    if not isinstance(content, dict):
        raise ValueError("not what DescribeWorker answers")
    engine = _details(content.pop("engine", {}))
    try:
        message = json_format.ParseDict(
            content, worker_pb2.DescribeWorkerResponse(), ignore_unknown_fields=True
        )
    except (json_format.ParseError, OverflowError) as error:
        raise ValueError(f"not what DescribeWorker answers: {error}") from None
    return WorkerModel.described(message, source, engine)


_DETAILS = tuple(f.name for f in fields(EngineDetails))


def _details(content: object) -> EngineDetails:
    if not isinstance(content, Mapping):
        raise ValueError("engine: must be a mapping")
    known: dict[str, int | float | tuple[float, ...]] = {}
    for name, value in content.items():
        if name not in _DETAILS:
            raise ValueError(f"engine: {name!r} is not known{did_you_mean(name, _DETAILS)}")
        if name == "step_ratios":
            if not isinstance(value, list) or not value or not all(_is_number(v) and v > 0 for v in value):
                raise ValueError("engine.step_ratios: must be a list of numbers above 0")
            known[name] = tuple(float(v) for v in value)
        elif not _is_number(value) or (name.endswith("_tokens") and value < (name in _AT_LEAST_1)):
            raise ValueError(f"engine.{name}: {value!r} is not a number in its range")
        else:
            known[name] = value
    return replace(EngineDetails(), **known)  # type: ignore[arg-type]  # each was checked by its name


_AT_LEAST_1 = ("step_tokens", "idle_step_tokens", "chunk_tokens")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def computed(
    name: str,
    *,
    weight_bytes: float,
    state_bytes: float,
    context_bytes: float,
    parameters: float,
    bytes_per_s: float,
    flops: float,
    overhead_s: float,
    memory_bytes: float,
    slots: int,
    max_sequence_tokens: int,
    measured: bool = False,
) -> WorkerModel:
    """A GPU's speed from what it reaches, for a model that is a hybrid of Mamba and attention layers.

    A decode step reads all weights, and reads and writes the state of each sequence; a token of a sequence's
    past is read once a step; a prompt token takes two operations for each parameter. bytes_per_s, flops: that
    the GPU reaches in practice. overhead_s: of a step. memory_bytes: for states and pages. measured: whether
    these were, or follow from a data sheet.
    """
    sizes = sorted({size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < slots} | {slots})
    fixed_s = overhead_s + weight_bytes / bytes_per_s
    page_tokens = 32
    pages = int((memory_bytes - slots * state_bytes) / (context_bytes * page_tokens))
    return WorkerModel(
        name=name,
        source=f"computed from {'measurements' if measured else 'data sheets'}:"
        f" {bytes_per_s / 1e12:.2g} TB/s, {flops / 1e12:.0f} TFLOP/s",
        decode=DecodeCurve.through(
            [(size, fixed_s + size * 2 * state_bytes / bytes_per_s) for size in sizes]
        ),
        prefill_tokens_per_s=flops / (2 * parameters),
        slots=slots,
        max_sequence_tokens=max_sequence_tokens,
        page_tokens=page_tokens,
        pages=min(pages, slots * -(-max_sequence_tokens // page_tokens)),
        queue=4 * slots,
        engine=EngineDetails(context_token_s=context_bytes / bytes_per_s),
    )


# Nemotron-Nano-9B-v2: of its 17.8 GB of bfloat16 weights, the table of embeddings (1.2 GB) is not read; a
# state is kept in float32.
_9B = {
    "weight_bytes": 16.6e9,
    "state_bytes": 137 * 2**20,
    "context_bytes": 16_384,
    "parameters": 8.9e9,
    "max_sequence_tokens": 131_072,
}

PRESETS: Mapping[str, WorkerModel] = {
    # As one was measured (docs/kernels.md): steps of 1 to 128 sequences, prompts of 8,192 tokens; a part of a
    # millisecond of a step is the engine's.
    "9b-h200": computed(
        "9b-h200",
        **_9B,  # type: ignore[arg-type]  # whole numbers are numbers
        bytes_per_s=3.4e12,
        flops=640e12,
        overhead_s=0.3e-3,
        memory_bytes=100e9,
        slots=128,
        measured=True,
    ),
    # 600 GB/s and 70 TFLOP/s on paper; beside the weights, 22.06 GiB hold 8 states and 100,000 tokens.
    "9b-a10g": computed(
        "9b-a10g",
        **_9B,  # type: ignore[arg-type]
        bytes_per_s=0.48e12,
        flops=35e12,
        overhead_s=1e-3,
        memory_bytes=2.9e9,
        slots=8,
    ),
    # Measured on two shared CPU cores; `make demo` gives each step 8 ms.
    "demo": WorkerModel(
        name="demo",
        source="the demo's worker at 8 ms a step, measured",
        decode=DecodeCurve.through(
            [(1, 0.65e-3), (2, 0.75e-3), (4, 0.9e-3), (8, 1.1e-3), (16, 1.9e-3), (32, 2.8e-3)]
        ),
        prefill_tokens_per_s=30_000.0,
        slots=32,
        max_sequence_tokens=131_072,
        page_tokens=32,
        pages=8_009,
        queue=256,
        bytes_per_token=1.15,
        engine=EngineDetails(
            step_tokens=64,
            idle_step_tokens=512,
            chunk_tokens=32,
            least_step_s=8e-3,
            relay_s=5e-3,
            boundary_tokens=5.5,
            step_ratios=(1.01, 1.02, 1.03, 1.05, 1.05, 1.06, 1.08, 1.1, 1.12, 1.2),
        ),
    ),
}
