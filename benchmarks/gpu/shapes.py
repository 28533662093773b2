"""Inputs of a model's kernels, and a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.layout import PrefillIndex, Segment, StepLayout, step_layout
from worker.model.config import ModelConfig

PAGE_TOKENS = 32

# For checking the benchmark itself. The vocabulary holds the demonstration's.
TINY: dict[str, object] = {
    "hybrid_override_pattern": "M*-",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """Random inputs of a model's kernels, strided as its network makes them."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, in the model's type if none is named."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def projected(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """A Mamba layer's projection: z, xBC and dt."""
        config = self.config
        parts = [config.inner_size, config.conv_size, config.mamba_heads]
        z, xbc, dt = self.random(tokens, sum(parts)).split(parts, dim=-1)
        return z, xbc, dt

    def scan(self, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, dt, a, b, c and d. Time steps from a thousandth to a tenth, A from −1 to −16, as trained
        models have.
        """
        config, heads = self.config, self.config.mamba_heads
        bc = config.groups * config.state_size
        mixed = self.random(tokens, config.conv_size)
        x, b, c = mixed.split([config.inner_size, bc, bc], dim=-1)
        uniform = torch.rand(tokens, heads, device=self.device)
        a = -torch.exp(torch.rand(heads, device=self.device) * 2.7)
        grouped = (config.groups, config.state_size)
        return (
            x.unflatten(-1, (heads, config.mamba_head_dim)),
            torch.exp(uniform * 4.6 - 6.9),
            a,
            b.unflatten(-1, grouped),
            c.unflatten(-1, grouped),
            self.random(heads, dtype=torch.float32),
        )

    def states(self, slots: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A pool of scan states."""
        config = self.config
        return self.random(slots, config.mamba_heads, config.mamba_head_dim, config.state_size, dtype=dtype)

    def conv_states(self, slots: int) -> Tensor:
        """A pool of the convolution's states."""
        return self.random(slots, self.config.conv_kernel - 1, self.config.conv_size)

    def conv_weights(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight and bias."""
        return self.random(self.config.conv_kernel, self.config.conv_size), self.random(self.config.conv_size)

    def heads(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """An attention layer's queries, keys and values."""
        config = self.config
        parts = [config.query_heads, config.kv_heads, config.kv_heads]
        q, k, v = self.random(tokens, sum(parts), config.head_dim).split(parts, dim=1)
        return q, k, v

    def projections(self) -> dict[str, Tensor]:
        """The weights [out, in] of a Mamba layer's and an MLP's projections, scaled as trained ones are."""
        config = self.config
        mamba = config.inner_size + config.conv_size + config.mamba_heads
        shapes = {
            "in_proj": (mamba, config.hidden_size),
            "out_proj": (config.hidden_size, config.inner_size),
            "up_proj": (config.mlp_size, config.hidden_size),
            "down_proj": (config.hidden_size, config.mlp_size),
        }
        return {name: self.random(*shape).mul_(shape[1] ** -0.5) for name, shape in shapes.items()}

    def logits(self, rows: int) -> Tensor:
        """Logits of which a few hundred tokens matter, as a language model's."""
        return 3 * self.random(rows, self.config.vocab_size, dtype=torch.float32)

    def sampling(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Temperature, top-p, top-k and the random number of each row."""
        temperature, top_p = (
            torch.rand(rows, device=self.device) * width + least for width, least in ((0.9, 0.3), (0.6, 0.4))
        )
        top_k = torch.randint(0, self.config.vocab_size // 2, (rows,), device=self.device).float()
        random = torch.randint(0, 1 << 24, (rows,), device=self.device) / (1 << 24)
        return temperature, top_p, top_k, random

    def pages(self, count: int) -> Tensor:
        """A pool of keys or values."""
        return self.random(count, PAGE_TOKENS, self.config.kv_heads, self.config.head_dim)

    def decodes(self, contexts: Sequence[int]) -> StepLayout:
        """A step that decodes the last of `context` tokens of each, in slot n, on scattered pages."""
        return self._layout(decodes(contexts), [])

    def prefill(self, spans: Sequence[tuple[int, int]]) -> tuple[StepLayout, PrefillIndex]:
        """A step of pieces over (start, length), piece n in slot n, on scattered pages."""
        layout = self._layout([], _segments(spans))
        assert layout.prefill is not None
        return layout, layout.prefill

    def _layout(self, decodes: Sequence[Segment], pieces: Sequence[Segment]) -> StepLayout:
        return step_layout(
            decodes,
            pieces,
            page_tokens=PAGE_TOKENS,
            chunk=self.config.chunk_size,
            window=self.config.conv_kernel,
            device=self.device,
        )


def decodes(contexts: Sequence[int]) -> list[Segment]:
    """Segments that decode the last of `context` tokens each, sequence n in slot n."""
    return _segments([(context - 1, 1) for context in contexts])


def page_count(lengths: Sequence[int]) -> int:
    """Pages that the segments of sequences of these lengths use."""
    return len(lengths) * -(-max(lengths) // PAGE_TOKENS)


def _segments(spans: Sequence[tuple[int, int]]) -> list[Segment]:
    count = len(spans)
    return [
        Segment(n, start, length, [n + count * page for page in range(-(-(start + length) // PAGE_TOKENS))])
        for n, (start, length) in enumerate(spans)
    ]
