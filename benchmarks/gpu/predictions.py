"""What an H200 should make of each kernel and of whole models: `python -m benchmarks.gpu.predictions`.

Needs no GPU: bytes and operations follow from the shapes. The floor takes the published roofs, which nothing
reaches. The prediction takes a copy's bandwidth, of which each kernel gets the share that its design should
reach, and the launches. Prints the tables of docs/kernels.md, with what was measured beside it: that of the
files given with --results, of which the last that has a figure counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.kernel_speed import Case, Sizes, cases
from benchmarks.gpu.measure import Roofs
from benchmarks.gpu.model_speed import MeasuredModel
from benchmarks.gpu.published import HYBRID_9B
from benchmarks.gpu.shapes import Inputs
from kernels import kernels_for
from worker.model.config import LayerKind, ModelConfig
from worker.model.linear import WeightFormat

H200 = Roofs(copy=4.8e12, matrix=989e12)
_COPY = 0.88 * H200.copy
_LAUNCH_S, _LAUNCH_IN_GRAPH_S = 2e-6, 1e-6


@dataclass(frozen=True, slots=True)
class Expected:
    """Launches of a kernel; of a copy's bandwidth, and of the matrix peak, the shares it should reach; and
    how often it must move its bytes.
    """

    copy: float
    launches: int = 1
    matrix: float = 0.5
    passes: int = 1


# By the first word of a case's name.
EXPECTED = {
    "add_rms_norm": Expected(0.9),
    "gated_group_norm": Expected(0.9),
    "conv_update": Expected(0.75),
    "conv_prefill": Expected(0.85, launches=2),
    "scan_update": Expected(0.85),
    # Its states go through memory, and x, B and C twice: 14 MB for each chunk, where the least is 6.
    "scan_prefill": Expected(0.35, launches=3),
    "attention_decode": Expected(0.75, launches=2),
    "attention_prefill": Expected(0.85, matrix=0.5),
    "relu2": Expected(0.9),
    "sample": Expected(1.0, launches=14, passes=12),
}
_IN_FULL = Expected(0.9, matrix=0.72)
# Beyond 128 tokens a weight is converted first, once, at the speed of a copy.
_QUANTISED = Expected(0.8, matrix=0.65)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.predictions", description=__doc__)
    parser.add_argument("--results", type=Path, nargs="*", default=(), help="JSON files of benchmarks.gpu")
    measured = _measured(parser.parse_args().results)
    config = ModelConfig.parse(HYBRID_9B)
    print("| kernel | MB | GFLOP | floor µs | predicted µs | measured µs |")
    print("|---|---|---|---|---|---|")
    inputs = Inputs(config, torch.device("meta"), torch.bfloat16)
    for case in cases(inputs, sizes=Sizes(sequences=(1, 32, 128), tokens=(8192,))):
        if " in fp8 " in case.name:  # as in int8
            continue
        floor_s = max(case.moved / H200.copy, case.operations / H200.matrix)
        print(
            f"| {case.name} | {case.moved / 1e6:.1f} | {case.operations / 1e9:.0f}"
            f" | {floor_s * 1e6:.1f} | {kernel_s(case) * 1e6:.0f} | {_shown(measured.get(case.name), 0)} |"
        )
    print("\n| step | moves or computes | floor ms | predicted ms | measured ms |")
    print("|---|---|---|---|---|")
    for weights in (WeightFormat.FULL, WeightFormat.INT8):
        for step in steps(config, weights):
            kept = "" if weights is WeightFormat.FULL else f", {weights.value} weights"
            print(
                f"| {step.name}{kept} | {step.size} | {step.floor_s * 1e3:.1f}"
                f" | {step.predicted_s * 1e3:.1f} | {_shown(measured.get(step.name + kept), 1)} |"
            )


def _measured(results: Sequence[Path]) -> dict[str, float]:
    """Times of our kernels in µs, and of steps in ms, by name."""
    found: dict[str, float] = {}
    for path in results:
        report = json.loads(path.read_text(encoding="utf-8"))
        kernels = report.get("kernel_speed", [])
        found |= {row["name"]: row["time_us"] for row in kernels if row.get("kernels") == "triton"}
        rows = [*report.get("model_speed", []), *report.get("quantised_speed", [])]
        found |= {row["name"]: row["time_ms"] for row in rows if "time_ms" in row}
    return found


def _shown(measured: float | None, decimals: int) -> str:
    return "not yet" if measured is None else f"{measured:.{decimals}f}"


def kernel_s(case: Case) -> float:
    """The predicted time of one kernel."""
    kind, *words = case.name.split()
    expected = EXPECTED.get(kind, _IN_FULL if "full" in words else _QUANTISED)
    by_copy = expected.passes * case.moved / (_COPY * expected.copy)
    by_matrix = case.operations / (H200.matrix * expected.matrix)
    return expected.launches * _LAUNCH_S + max(by_copy, by_matrix)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a whole model. size: what its floor is of."""

    name: str
    size: str
    floor_s: float
    predicted_s: float


def steps(config: ModelConfig, weights: WeightFormat) -> Iterator[Step]:
    """Decode steps in graphs, and prefills."""
    meta = torch.device("meta")
    model = MeasuredModel(config, kernels_for(torch.device("cpu")), meta, torch.bfloat16, weights)
    full = weights is WeightFormat.FULL
    product = _IN_FULL if full else _QUANTISED
    mamba, mlp, attention = (config.count(kind) for kind in LayerKind)
    launches = 7 * mamba + 4 * mlp + 6 * attention + 3
    if not full:
        # Of every projection but in_proj programs share the inputs, whose sums a second kernel adds.
        launches += mamba + 2 * mlp + 2 * attention
    for sequences in (1, 8, 32, 128):
        moved = model.decode_bytes(sequences, 1024, model.pools([1024] * sequences))
        predicted_s = moved / (_COPY * product.copy) + launches * _LAUNCH_IN_GRAPH_S
        yield Step(f"decode {sequences} × 1024", f"{moved / 1e9:.1f} GB", moved / H200.copy, predicted_s)
    inputs = Inputs(config, meta, torch.bfloat16)
    for tokens in (1024, 8192):
        sizes = Sizes(sequences=(), contexts=(), tokens=(tokens,), packed=(256,))
        took_s = {case.name.split()[0]: kernel_s(case) for case in cases(inputs, sizes=sizes)}
        of_kind = {
            LayerKind.MAMBA: ("add_rms_norm", "conv_prefill", "scan_prefill", "gated_group_norm"),
            LayerKind.MLP: ("add_rms_norm", "relu2"),
            LayerKind.ATTENTION: ("add_rms_norm", "attention_prefill"),
        }
        rest_s = sum(took_s[name] for kind in config.layers for name in of_kind[kind])
        operations = model.prefill_operations(tokens)
        predicted_s = operations / (H200.matrix * product.matrix) + rest_s
        yield Step(
            f"prefill {tokens}", f"{operations / 1e12:.0f} TFLOP", operations / H200.matrix, predicted_s
        )


if __name__ == "__main__":
    main()
