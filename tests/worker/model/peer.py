"""transformers' nemotron_h as the peer, and a small driver of the network for comparing them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from transformers import NemotronHConfig, NemotronHForCausalLM

from kernels import kernels_for
from kernels.layout import Segment, step_layout
from worker.model.checkpoint import load_network
from worker.model.config import ModelConfig
from worker.model.network import Network
from worker.model.pools import Pools

CPU = torch.device("cpu")
_KINDS = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}


def peer_config(pattern: str, **sizes: object) -> NemotronHConfig:
    """A small configuration in which no two sizes are equal by chance; `sizes` replaces some."""
    usual: dict[str, object] = {
        "vocab_size": 61,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "mamba_num_heads": 8,
        "mamba_head_dim": 10,
        "ssm_state_size": 14,
        "n_groups": 2,
        "chunk_size": 8,
    }
    config: NemotronHConfig = NemotronHConfig.from_dict(
        usual | sizes | {"layers_block_type": [_KINDS[kind] for kind in pattern]}
    )
    return config


def random_peer_config(random: Random) -> NemotronHConfig:
    """Layers in any order, each kind at least once; groups, heads, widths, chunks and biases at random."""
    kinds = ["M", "-", "*", *random.choices("M-*", k=random.randrange(4))]
    random.shuffle(kinds)
    groups = random.choice([1, 2, 8])
    kv_heads = random.choice([1, 2, 3])
    return peer_config(
        "".join(kinds),
        n_groups=groups,
        mamba_num_heads=groups * random.choice([1, 3]),
        mamba_head_dim=random.choice([4, 10]),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * random.choice([1, 2, 5]),
        conv_kernel=random.choice([2, 3, 4]),
        chunk_size=random.choice([4, 7, 16]),
        use_conv_bias=random.random() < 0.5,
        use_bias=random.random() < 0.5,
        mlp_bias=random.random() < 0.5,
        attention_bias=random.random() < 0.5,
    )


def make_peer(config: NemotronHConfig, seed: int = 0) -> NemotronHForCausalLM:
    """A peer of random weights, large enough that every layer matters to the logits."""
    torch.manual_seed(seed)
    peer = NemotronHForCausalLM(config)
    peer.eval()
    for layer in peer.model.layers:
        if layer.block_type == "full_attention" and config.attention_bias:
            # The peer reads this switch and ignores it.
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                old = getattr(layer.mixer, name)
                setattr(layer.mixer, name, nn.Linear(old.in_features, old.out_features))
        if layer.block_type == "linear_attention":
            # To version 5.23 it clamps dt in prefill, but not in decode.
            layer.mixer.time_step_limit = (0.0, math.inf)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(0.0, math.log(16.0))
            elif name.endswith("dt_bias"):
                parameter.uniform_(-5.0, 0.0)
            elif parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 / math.sqrt(parameter[0].numel()))
    return peer


@torch.inference_mode()
def peer_logits(peer: NemotronHForCausalLM, ids: Sequence[int]) -> Tensor:
    """[tokens, vocab]: what follows each token."""
    logits: Tensor = peer(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Network:
    """Loads a model directory as the worker does."""
    return load_network(directory, ModelConfig.load(directory), kernels_for(CPU), dtype=dtype, device=CPU)


@dataclass
class Driver:
    """Runs steps of one network over its own pools. Sequences are known by number, their pages scattered."""

    network: Network
    sequences: int = 4
    pages_each: int = 12
    page_tokens: int = 8
    pools: Pools = field(init=False)
    lengths: list[int] = field(init=False)
    pages: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        total = self.sequences * self.pages_each
        self.pools = Pools.allocate(
            self.network.config,
            slots=self.sequences + 1,
            pages=total,
            page_tokens=self.page_tokens,
            dtype=self.network.dtype,
            device=CPU,
        )
        shuffled = Random(total).sample(range(total), total)
        self.pages = [shuffled[n :: self.sequences] for n in range(self.sequences)]
        self.lengths = [0] * self.sequences

    @torch.inference_mode()
    def step(self, pieces: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """As `logits`, without gradients."""
        return self.logits(pieces)

    def logits(self, pieces: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Feeds each sequence its tokens, single ones of started sequences as decodes.

        Returns each one's logits [its tokens, vocab].
        """
        decodes = [n for n, ids in pieces.items() if len(ids) == 1 and self.lengths[n]]
        order = decodes + [n for n in pieces if n not in decodes]
        segments = {
            # Slots in another order than the sequences.
            n: Segment(slot=self.sequences - n, start=self.lengths[n], length=len(ids), pages=self.pages[n])
            for n, ids in pieces.items()
        }
        config = self.network.config
        layout = step_layout(
            [segments[n] for n in decodes],
            [segments[n] for n in order[len(decodes) :]],
            page_tokens=self.page_tokens,
            chunk=config.chunk_size,
            window=config.conv_kernel,
            device=CPU,
        )
        tokens = torch.tensor([i for n in order for i in pieces[n]])
        logits = self.network.logits(self.network.hidden(tokens, layout, self.pools))
        for n, ids in pieces.items():
            self.lengths[n] += len(ids)
        return dict(zip(order, logits.split([len(pieces[n]) for n in order]), strict=True))


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def prompt(length: int, seed: int, vocab: int = 61) -> list[int]:
    """Random token ids."""
    random = Random(seed)
    return [random.randrange(vocab) for _ in range(length)]
