"""What the benchmarks share: the model under test, prompts, and how results are shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch

from worker.engine.build import EngineOptions, Model, build_engine, load_model
from worker.engine.engine import Engine
from worker.model.heap import keep_freed_memory

DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark of the worker can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, metavar="DIR", help="Hugging Face model directory"
    )
    return parser


def load(directory: Path) -> Model:
    """Loads a model for the CPU, in fp32, in a process that keeps freed memory as a worker's does."""
    keep_freed_memory()
    return load_model(directory, device=torch.device("cpu"), dtype=torch.float32)


def make_engine(model: Model, *, compiled: Path | None = None, **options: int) -> Engine:
    """An engine as a worker has it, on the real clock. The options are those of EngineOptions."""
    return build_engine(model, EngineOptions(compiled=compiled, **options), time.monotonic)


def sums(count: int, seed: int = 0) -> list[str]:
    """Different questions of the demo model's hardest kind, all of one length: sums of 12 numbers."""
    random = Random(seed)
    return [f"What is {' + '.join(str(random.randrange(10, 100)) for _ in range(12))}?" for _ in range(count)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_threads(run: Callable[[], float]) -> int:
    """The number of threads with which `run` takes the fewest seconds: one, or one for each core."""
    candidates = sorted({1, os.cpu_count() or 1})
    seconds = {}
    for count in candidates:
        with threads(count):
            seconds[count] = min(run() for _ in range(2))
    return min(candidates, key=lambda count: seconds[count])


def print_machine() -> None:
    """Says what was measured on."""
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints columns, the first to the left, the others to the right; numbers with 3 significant digits."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    for line in cells:
        first, *others = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]))


def print_result(result: object) -> None:
    """Prints the one JSON line that other programs read."""
    print(json.dumps(result))


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
