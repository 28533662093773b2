"""Memory that a step needs besides weights and pools: by estimate from a config, or measured on a GPU."""

from __future__ import annotations

import torch

from kernels.layout import Segment, step_layout
from worker.model.config import LayerKind, ModelConfig
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.pools import Pools

# Tokens between two states that the prefill scan keeps for the length of a layer (kernels.triton_ops.scan).
_SCAN_CHUNK = 128


def estimate_workspace(
    config: ModelConfig, *, tokens: int, sequences: int, number_bytes: int, weights: WeightFormat
) -> int:
    """Bytes of a step of `tokens` tokens of which `sequences` get logits: the residual stream, and the
    widest layer's intermediates, which the allocator reuses from layer to layer, or the logits with what
    sampling makes of them. A layer whose weights are quantised also has the largest of them in full
    (kernels.triton_ops.linear).
    """
    heads = config.mamba_heads
    projected = 2 * config.inner_size + 2 * config.groups * config.state_size + heads
    state = heads * config.mamba_head_dim * config.state_size
    mamba = tokens * (projected + config.conv_size + 2 * config.inner_size) * number_bytes
    # The scan's time steps and sums are in fp32, those for its walk chunk by chunk.
    chunks = tokens // _SCAN_CHUNK + 2
    mamba += (3 * tokens + chunks * (_SCAN_CHUNK + 1)) * heads * 4 + chunks * state * number_bytes
    mlp = 2 * tokens * config.mlp_size * number_bytes
    attention = tokens * (2 * config.query_heads + 2 * config.kv_heads) * config.head_dim * number_bytes
    by_kind = {LayerKind.MAMBA: mamba, LayerKind.MLP: mlp, LayerKind.ATTENTION: attention}
    if weights is not WeightFormat.FULL:
        widest = {
            LayerKind.MAMBA: max(projected, config.inner_size),
            LayerKind.MLP: config.mlp_size,
            LayerKind.ATTENTION: (config.query_heads + 2 * config.kv_heads) * config.head_dim,
        }
        for kind, width in widest.items():
            by_kind[kind] += width * config.hidden_size * number_bytes
    residual = 3 * tokens * config.hidden_size * number_bytes
    # In the model's type and in fp32; sorted with 8-byte ids; probabilities and their sums.
    logits = sequences * config.vocab_size * (number_bytes + 4 + 4 + 8 + 3 * 4)
    return residual + max(logits, *(by_kind[kind] for kind in set(config.layers)))


@torch.inference_mode()
def measure_workspace(network: Network, *, page_tokens: int, tokens: int, sequences: int) -> int:
    """Runs one prefill of `tokens` tokens with `sequences` rows of logits on a GPU. Returns the bytes that
    it took at its peak. A first run loads what the device's libraries load once, which is left out.
    """
    device = network.device
    pages = -(-tokens // page_tokens)
    pools = Pools.allocate(
        network.config, slots=1, pages=pages, page_tokens=page_tokens, dtype=network.dtype, device=device
    )
    layout = step_layout(
        [],
        [Segment(0, 0, tokens, range(pages))],
        page_tokens=page_tokens,
        chunk=network.config.chunk_size,
        window=network.config.conv_kernel,
        device=device,
    )
    ids = torch.zeros(tokens, dtype=torch.long, device=device)
    rows = torch.zeros(sequences, dtype=torch.long, device=device)

    def step() -> None:
        logits = network.logits(network.hidden(ids, layout, pools).index_select(0, rows))
        torch.sort(logits, dim=-1, descending=True, stable=True)

    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
