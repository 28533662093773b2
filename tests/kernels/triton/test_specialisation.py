"""Nothing is compiled because a batch has another size: Triton specialises whole numbers (those that are 1,
and multiples of 16) and pointers (to multiples of 16 bytes), which must not happen to what changes from step
to step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.published import HYBRID_9B
from kernels import kernels_for, triton_ops
from kernels.layout import Segment, step_layout
from kernels.triton_ops.tiles import decode_splits
from tests.kernels.triton.calls import PAGE, empty
from tests.kernels.triton.offline import Launch, caught
from worker.engine.graphs import DecodeGraphs
from worker.engine.sampling import Draw, Sampling, choose
from worker.model.config import ModelConfig
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.pools import Pools

META = torch.device("meta")
# Every kind of layer of the 9B model.
CONFIG = ModelConfig.parse(HYBRID_9B | {"hybrid_override_pattern": "M-*", "num_hidden_layers": 3})
# (start, length) of prefill pieces: one token, odd and even numbers, whole chunks and pages.
PIECES = [
    [(0, 1)],
    [(0, 16)],
    [(128, 128), (0, 1)],
    [(1, 7), (0, 33), (640, 130)],
    [(0, 1), (5, 1), (4096, 1), (2, 14)],
    [(0, 1000)],
]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(
        CONFIG,
        lambda name, *shape: empty(*shape),
        kernels_for(torch.device("cpu"), "triton"),
        dtype=torch.bfloat16,
        weights=WeightFormat.INT8,
    )


@pytest.fixture(scope="module")
def pools() -> Pools:
    return Pools.allocate(CONFIG, slots=9, pages=9, page_tokens=PAGE, dtype=torch.bfloat16, device=META)


def compiled_once(launches: Iterable[Launch]) -> set[str]:
    """Asserts that launches which chose the same compile to the same. Returns the kernels' names."""
    keys = defaultdict(set)
    for launch in launches:
        keys[launch.choices()].add(launch.key(90))
    assert [choices[:3] for choices, found in keys.items() if len(found) > 1] == []
    return {str(choices[0]) for choices in keys}


def step(network: Network, pools: Pools, decodes: int, spans: Sequence[tuple[int, int]]) -> None:
    """One step whose sequences have as many pages as there are decodes."""
    layout = step_layout(
        [Segment(1, decodes * PAGE - 1, 1, range(decodes))] * decodes,
        [Segment(2, *span, range(sum(span) // PAGE + 1)) for span in spans],
        page_tokens=PAGE,
        chunk=128,
        window=4,
        device=torch.device("cpu"),
    )
    network.hidden(empty(layout.tokens, dtype=torch.int64), layout, pools)


def test_a_steps_kernels_do_not_depend_on_its_batch(network: Network, pools: Pools) -> None:
    with caught() as launches:
        for decodes in range(41):
            for spans in [PIECES[decodes % len(PIECES)], []] if decodes > 2 else PIECES:
                step(network, pools, decodes, spans)
    assert compiled_once(launches) >= {
        "conv_update_kernel",
        "conv_carry_kernel",
        "scan_states_kernel",
        "scan_update_kernel",
        "attention_decode_kernel",
        "attention_prefill_kernel",
        "linear_kernel",
        "relu2_kernel",
    }


def test_captured_steps_have_the_same_kernels(network: Network, pools: Pools) -> None:
    with caught() as launches:
        step(network, pools, 8, [])
        for size in range(1, 41):
            DecodeGraphs(
                network,
                pools,
                page_tokens=PAGE,
                max_pages=size,
                sizes=[size],
                capture=lambda run: (run(), run)[1],
            )
    assert "store_kv_kernel" in compiled_once(launches)


def test_the_choice_of_tokens_does_not_depend_on_the_number_of_rows() -> None:
    def sample(logits: Tensor, *rules: Any) -> Tensor:
        triton_ops.sample(logits, *rules)
        return torch.zeros(len(logits), dtype=torch.int64)

    with caught() as launches:
        for rows in range(1, 41):
            for rule in ({}, {"top_p": 0.9}, {"top_k": 7}, {"top_p": 0.9, "top_k": 7, "min_p": 0.1}):
                draws = [Draw(Sampling(temperature=1.0, **rule), 3)] * rows
                choose(torch.zeros(rows, 4096), draws, sample)
    assert len(compiled_once(launches)) == 5


def test_few_numbers_of_parts_serve_every_batch() -> None:
    parts = [decode_splits(sequences, CONFIG.kv_heads) for sequences in range(1, 300)]
    assert set(parts) == {1, 2, 4, 8, 16, 32, 64}
    assert parts == sorted(parts, reverse=True)
