"""What the GPU benchmark says and measures can be said and run without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.kernel_speed import Sizes, cases
from benchmarks.gpu.predictions import H200, kernel_s, steps
from benchmarks.gpu.published import HYBRID_9B
from benchmarks.gpu.shapes import Inputs
from worker.model.config import ModelConfig
from worker.model.linear import WeightFormat

NINE_B = ModelConfig.parse(HYBRID_9B)


def test_no_prediction_is_faster_than_its_floor() -> None:
    inputs = Inputs(NINE_B, torch.device("meta"), torch.bfloat16)
    for case in cases(inputs, sizes=Sizes(sequences=(1, 32), tokens=(8192,))):
        floor_s = max(case.moved / H200.copy, case.operations / H200.matrix)
        assert floor_s < kernel_s(case) < 10 * floor_s + 100e-6, case.name
    for weights in WeightFormat:
        for step in steps(NINE_B, weights):
            assert step.floor_s < step.predicted_s < 3 * step.floor_s, step


def test_the_floors_of_a_decode_step_are_those_of_its_bytes() -> None:
    """ms on an H200 at 1k of context: 9B in bf16 as counted by hand from its shapes, and in int8, whose
    7.71 billion numbers are half as long.
    """
    full, int8 = (
        {step.name: step.floor_s * 1e3 for step in steps(NINE_B, weights)}
        for weights in (WeightFormat.FULL, WeightFormat.INT8)
    )
    assert [round(full[f"decode {n} × 1024"], 1) for n in (1, 8, 32, 128)] == [3.5, 4.0, 5.5, 11.6]
    assert [round(full[name] - int8[name], 1) for name in full if name.startswith("decode")] == [1.6] * 4


def test_the_benchmark_itself_runs(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu", "--smoke", "--device", "cpu"),
            *("--output", str(output)),
            *("--sections", "correctness", "kernel_speed", "model_speed", "quantised_speed", "long_output"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["smoke"]
    assert all(check["passed"] for check in found["correctness"])
    for kernel in ("quantised_linear, fp8", "sample, top_p and top_k", "scan_update", "attention, decode"):
        assert any(check["name"].startswith(kernel) for check in found["correctness"]), kernel
    assert {"decode 2 × 40, int8 weights", "prefill 50, fp8 weights"} <= {
        step["name"] for step in found["quantised_speed"]
    }
    assert [row["model"] for row in found["long_output"]] == ["hybrid", "hybrid in int8", "transformer"]
