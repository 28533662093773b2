"""Padded decode steps over static buffers against plain ones, with the Triton kernels that must skip
padding.

Nothing is captured without a GPU: the step runs again where a graph would be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import kernels_for
from kernels.layout import Segment, step_layout
from worker.engine.graphs import DecodeGraphs, ladder
from worker.model.config import ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.network import Network
from worker.model.pools import Pools

CPU = torch.device("cpu")
PAGE = 16
CONFIG = ModelConfig.parse(
    {
        "hybrid_override_pattern": "M*-",
        "vocab_size": 17,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "mamba_num_heads": 2,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
    }
)


def network(kernels: str) -> Network:
    tensors = DummyTensors(device=CPU, dtype=torch.float32, seed=1)
    return Network(CONFIG, tensors, kernels_for(CPU, kernels))


def filled_pools() -> Pools:
    pools = Pools.allocate(CONFIG, slots=6, pages=8, page_tokens=PAGE, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(2)
    for pool in (*pools.conv, *pools.ssm, *pools.keys, *pools.values):
        pool.normal_(generator=generator)
    return pools


def plain(pools: Pools, tokens: Sequence[int], segments: Sequence[Segment]) -> Tensor:
    layout = step_layout(segments, [], page_tokens=PAGE, chunk=128, window=4, device=CPU)
    model = network("torch")
    return model.logits(model.hidden(torch.tensor(tokens), layout, pools))


def test_padded_steps_give_what_plain_ones_give_and_touch_nothing_else() -> None:
    ours, theirs = filled_pools(), filled_pools()
    untouched = filled_pools()
    graphs = DecodeGraphs(
        network("triton"), ours, page_tokens=PAGE, max_pages=3, sizes=(1, 4), capture=lambda step: step
    )
    first, second = Segment(3, 20, 1, [4, 1]), Segment(0, 3, 1, [6])
    third = Segment(5, 33, 1, [2, 7, 3])
    batches = [
        ([1, 2, 3], [first, second, third]),
        # A sequence left, and the next moved up into its place; then one alone, on a smaller rung.
        ([4, 5], [Segment(0, 4, 1, [6]), Segment(5, 34, 1, [2, 7, 3])]),
        ([6], [Segment(5, 35, 1, [2, 7, 3])]),
    ]
    for tokens, segments in batches:
        got = graphs.logits(tokens, segments)
        torch.testing.assert_close(got, plain(theirs, tokens, segments), rtol=1e-5, atol=1e-5)
    for mine, other in zip((*ours.conv, *ours.ssm), (*theirs.conv, *theirs.ssm), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    for mine, other, before in zip(ours.keys, theirs.keys, untouched.keys, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(mine[[0, 5]], before[[0, 5]])


def test_the_ladder_reaches_every_batch_and_no_further() -> None:
    for slots in range(1, 200):
        rungs = ladder(slots)
        assert rungs[-1] == slots
        assert list(rungs) == sorted(set(rungs))
        for count in range(1, slots + 1):
            assert min(size for size in rungs if size >= count) < max(2 * count, count + 16)
