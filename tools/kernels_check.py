"""Compiles every Triton kernel for every size of the family and many batch sizes, without a GPU, and prints
what each needs.

Fails when a kernel spills registers or does not fit. `make test` does the same for one size.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.published import HYBRID_4B, HYBRID_9B, HYBRID_12B
from kernels.triton_ops import tiles
from tests.kernels.triton.calls import Shapes, calls
from tests.kernels.triton.offline import SHARED_LIMIT, caught
from worker.model.config import ModelConfig

MODELS = {"9B": HYBRID_9B, "12B": HYBRID_12B, "4B": HYBRID_4B}
BATCHES = (1, 8, 32, 128)
PROMPTS = (1, 1000, 8192)


def main() -> int:
    """Compiles each kernel once for each set of tiles and alignments that occurs. Returns how many are bad,
    up to 1.
    """
    bad, seen = 0, set()
    for (model, raw), batch, prompt, arch in product(MODELS.items(), BATCHES, PROMPTS, (86, 90)):
        config = ModelConfig.parse(raw)
        prefill, decode = (Shapes(tokens, config) for tokens in (prompt, batch))
        with patch.object(tiles, "hopper", return_value=arch == 90), caught() as launches:
            for call in calls(prefill, decode).values():
                call()
        for launch in launches:
            key = launch.key(arch)
            if key in seen:
                continue
            seen.add(key)
            compiled = launch.compile(arch)
            well = compiled.spilled_bytes == 0 and compiled.shared_bytes <= SHARED_LIMIT[arch]
            bad += not well
            print(f"{model:3} {compiled.row(launch)}{'' if well else '  BAD'}", flush=True)
    print(f"{len(seen)} kernels, {bad} bad")
    return min(bad, 1)


if __name__ == "__main__":
    raise SystemExit(main())
