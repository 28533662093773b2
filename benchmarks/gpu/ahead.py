"""Compiles kernels before they are measured, in many processes at once: a compiler uses one core, and Triton
finds on disk what another process has compiled.

Each process makes its share of the calls once: `python -m benchmarks.gpu.ahead SHARE OF`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.correctness import Check, checks
from benchmarks.gpu.kernel_speed import Case, Sizes, cases
from benchmarks.gpu.published import HYBRID_9B
from benchmarks.gpu.shapes import Inputs
from kernels import Kernels, kernels_for
from worker.model.config import ModelConfig

_MOST_PROCESSES = 14


def compile_ahead() -> None:
    """Compiles what the sections on kernels launch. What fails here is told there."""
    count = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) - 1))
    command = [sys.executable, "-m", "benchmarks.gpu.ahead"]
    shares = [
        subprocess.Popen([*command, str(share), str(count)], stderr=subprocess.DEVNULL)
        for share in range(count)
    ]
    for share in shares:
        share.wait()


def main() -> None:
    """Makes one share of the calls."""
    share, count = map(int, sys.argv[1:])
    device = torch.device("cuda:0")
    inputs, kernels = Inputs(ModelConfig.parse(HYBRID_9B), device, torch.bfloat16), kernels_for(device)
    for number, call in enumerate(_calls(inputs, kernels)):
        if number % count == share:
            call()
    _try_share_of_tiles(inputs, share, count)


def _calls(inputs: Inputs, kernels: Kernels) -> Iterator[Callable[[], object]]:
    yield from (partial(_all, check) for check in checks(kernels, inputs))
    yield from (partial(_once, case, kernels) for case in cases(inputs, sizes=Sizes()))


def _once(case: Case, kernels: Kernels) -> None:
    case.prepare(kernels)()


def _all(check: Callable[[], Iterator[Check]]) -> None:
    for _ in check():
        pass


def _try_share_of_tiles(inputs: Inputs, share: int, count: int) -> None:
    """mamba-ssm searches for tiles when it is called first: compiles a share of its candidates."""
    try:
        peer = kernels_for(inputs.device, "mamba_ssm")
    except ImportError:
        return
    from triton.runtime.autotuner import Autotuner

    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.")]
    for searched in {value for module in modules for value in vars(module).values()}:
        if isinstance(searched, Autotuner):
            searched.configs = searched.configs[share::count] or searched.configs[:1]
    for case in cases(inputs, sizes=Sizes(sequences=(1,), contexts=(), tokens=(1024,), packed=(256,))):
        if "mamba_ssm" in case.peers:
            _once(case, peer)


if __name__ == "__main__":
    main()
