"""Runs the sections in turn, prints a line for each result and keeps all of them in one JSON file."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu.ahead import compile_ahead
from benchmarks.gpu.correctness import Check, checks
from benchmarks.gpu.engine_speed import answers, serve
from benchmarks.gpu.kernel_speed import Sizes, cases, measure
from benchmarks.gpu.measure import Roofs, describe, release, roofs
from benchmarks.gpu.model_speed import MeasuredModel, long_output, transformers_peer
from benchmarks.gpu.published import HYBRID_9B, TRANSFORMER_8B
from benchmarks.gpu.shapes import TINY, Inputs
from kernels import Kernels, kernels_for
from worker.model.config import ModelConfig
from worker.model.linear import WeightFormat

RESULTS = Path(__file__).parents[1] / "results"
_SMOKE_SIZES = Sizes(sequences=(2,), contexts=((2, 40),), tokens=(50,), packed=(3, 4))


class Benchmark:
    """What is measured, on what, until when."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.smoke: bool = options.smoke
        self.device = torch.device(options.device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.kernels = kernels_for(self.device, options.kernels)
        self.hybrid = TINY if self.smoke else HYBRID_9B
        self.transformer = TINY | {"hybrid_override_pattern": "*-"} if self.smoke else TRANSFORMER_8B
        self.inputs = Inputs(ModelConfig.parse(self.hybrid), self.device, self.dtype)
        self.roofs: Roofs = roofs(self.device)

    def correctness(self) -> Iterator[Check]:
        """Every kernel against float64."""
        for check in checks(self.kernels, self.inputs):
            yield from check()

    def kernel_speed(self) -> Iterator[object]:
        """Every kernel beside its roof, and its peers on the same inputs."""
        peers = {name: peer for name in ("torch", "mamba_ssm") if (peer := self._peer(name)) is not None}
        for case in cases(self.inputs, sizes=_SMOKE_SIZES if self.smoke else Sizes()):
            yield measure(case, self.kernels, self.roofs, self.device)
            for name in case.peers:
                if name in peers:
                    yield measure(case, peers[name], self.roofs, self.device)

    def model_speed(self) -> Iterator[object]:
        """A whole model beside its floors."""
        model = MeasuredModel(ModelConfig.parse(self.hybrid), self.kernels, self.device, self.dtype)
        context = 40 if self.smoke else 1024
        yield model.decode(1, context, self.roofs, graphs=False)
        for sequences in (1, 2) if self.smoke else (1, 8, 32, 128):
            yield model.decode(sequences, context, self.roofs)
        if not self.smoke:
            for sequences in (32, 128):
                yield model.decode(sequences, context, self.roofs, ssm_dtype=torch.bfloat16)
        for tokens in (50,) if self.smoke else (1024, 8192, 32768):
            yield model.prefill(tokens, self.roofs)

    def quantised_speed(self) -> Iterator[object]:
        """The same model with weights of 8 bits."""
        config = ModelConfig.parse(self.hybrid)
        for weights in (WeightFormat.INT8, WeightFormat.FP8):
            model = MeasuredModel(config, self.kernels, self.device, self.dtype, weights)
            for sequences in (1, 2) if self.smoke else (1, 8, 32, 128):
                yield model.decode(sequences, 40 if self.smoke else 1024, self.roofs)
            yield model.prefill(50 if self.smoke else 8192, self.roofs)
            del model
            release(self.device)

    def long_output(self) -> Iterator[object]:
        """The hybrid against a transformer of its size, 8k in and 16k out, at the batch that memory allows:
        of an A10G's 22.06 GiB, and of this device.
        """
        sizes = {"prompt": 16, "output": 32} if self.smoke else {"prompt": 8192, "output": 16384}
        here = 22.06
        if self.device.type == "cuda":
            here = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        for name, shape, weights in (
            ("hybrid", self.hybrid, WeightFormat.FULL),
            ("hybrid in int8", self.hybrid, WeightFormat.INT8),
            ("transformer", self.transformer, WeightFormat.FULL),
        ):
            config = ModelConfig.parse(shape)
            model = MeasuredModel(config, self.kernels, self.device, self.dtype, weights)
            for device_gib in (1.38,) if self.smoke else (22.06, here):
                result = long_output(name, model, device_gib, self.roofs, **sizes)
                if result is not None:
                    yield result
            del model
            release(self.device)

    def answers(self) -> Iterator[object]:
        """The demonstration's model, which is trained: is what it says right?"""
        yield from answers(self.device, self.dtype, problems=4 if self.smoke else 300)

    def engine(self) -> Iterator[object]:
        """Requests through the engine, beside the model's own steps."""
        config = ModelConfig.parse(self.hybrid)
        model = MeasuredModel(config, self.kernels, self.device, self.dtype)
        sizes = ((2, 20, 8),) if self.smoke else ((1, 1024, 128), (32, 1024, 128))
        for requests, prompt, output in sizes:
            step = model.decode(requests, prompt + output // 2, self.roofs)
            yield serve(model.network, config, step.time_ms, requests=requests, prompt=prompt, output=output)

    def transformers(self) -> Iterator[object]:
        """transformers' model at the same shape."""
        yield from transformers_peer(self.hybrid, self.device, tokens=20 if self.smoke else 1024)

    def _peer(self, name: str) -> Kernels | None:
        """Another implementation, where it is installed."""
        if name == self.kernels.name:
            return None
        try:
            return kernels_for(self.device, name)
        except (ImportError, ValueError) as error:
            print(f"  without {name}: {error}")
            return None


def main() -> int:
    """Runs the benchmark. Returns 1 when a kernel is wrong or a section failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    sections = [
        "correctness",
        "kernel_speed",
        "model_speed",
        "answers",
        "engine",
        "quantised_speed",
        "long_output",
        "transformers",
    ]
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", help="torch, triton or mamba_ssm; by default the device's fastest")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--minutes", type=float, default=8.5, help="no measurement starts later than this")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does the benchmark itself run?")
    parser.add_argument("--output", type=Path, help="JSON file; by default in benchmarks/results/")
    options = parser.parse_args()
    deadline_s = time.monotonic() + options.minutes * 60
    torch.manual_seed(0)
    if options.device.startswith("cuda") and not options.smoke:
        began_s = time.monotonic()
        compile_ahead()
        print(f"compiled ahead ({time.monotonic() - began_s:.0f} s)", flush=True)
    benchmark = Benchmark(options)
    if benchmark.device.type == "cpu" and not benchmark.smoke:
        parser.error("no GPU is here: only --smoke runs on a CPU")
    now = datetime.now(UTC)
    found = describe(benchmark.device)
    report: dict[str, object] = {
        "date": now.isoformat(timespec="seconds"),
        "kernels": benchmark.kernels.name,
        "smoke": benchmark.smoke,
        **found,
        "copy_gb_per_s": benchmark.roofs.copy / 1e9,
        "matrix_tflop_per_s": benchmark.roofs.matrix / 1e12,
    }
    name = "".join(letter if letter.isalnum() else "-" for letter in found["device"].lower())
    output = options.output or RESULTS / f"gpu-{name}-{now:%Y%m%d-%H%M}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    print("  ".join(f"{key} {value}" for key, value in report.items()))
    failed = False
    for section in options.sections:
        print(f"\n{section}")
        results: list[dict[str, object]] = []
        report[section] = results
        failed |= not _run(getattr(benchmark, section), results, deadline_s)
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        release(benchmark.device)
    print(f"\n{output}")
    return int(failed)


def _run(
    section: Callable[[], Iterator[object]], results: list[dict[str, object]], deadline_s: float
) -> bool:
    """Runs one section; what it has measured before it fails is kept. Returns whether all is well."""
    began_s, well = time.monotonic(), True
    try:
        for result in section():
            assert is_dataclass(result)
            assert not isinstance(result, type)
            row = asdict(result)
            if isinstance(result, Check):
                row["passed"] = result.passed
                well &= result.passed
            results.append(row)
            print("  " + "  ".join(_shown(key, value) for key, value in row.items()), flush=True)
            if time.monotonic() > deadline_s:
                print("  out of time")
                results.append({"error": "out of time"})
                break
    except Exception as error:  # one section's failure must not cost the others' results
        traceback.print_exc(file=sys.stdout)
        results.append({"error": f"{type(error).__name__}: {error}"})
        well = False
    print(f"  ({time.monotonic() - began_s:.0f} s)", flush=True)
    return well


def _shown(key: str, value: object) -> str:
    if key == "name":
        return f"{value:42}"
    return f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"


if __name__ == "__main__":
    raise SystemExit(main())
